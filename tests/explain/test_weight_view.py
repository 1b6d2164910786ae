"""Words, codes and values of a row against the tensors written."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from laguna_ref import checkpoint, explain
from laguna_ref.errors import InputError
from tests.small import Small, quantised, small, small_config
from tests.tolerances import STANDARD_DEVIATIONS, quantisation_error

EXPERT = "model.layers.1.mlp.experts.2.gate_proj"


@pytest.fixture(scope="module", params=[4, 8])
def one(request: pytest.FixtureRequest) -> Small:
    return small(quantised(small_config(), bits=request.param))


@pytest.fixture(scope="module")
def opened(one: Small, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    folder = tmp_path_factory.mktemp("weight") / "model"
    one.write(folder)
    return checkpoint.open(folder)


@pytest.mark.parametrize("row", [0, 5])
def test_a_packed_row(one: Small, opened: checkpoint.Checkpoint, row: int) -> None:
    view = explain.weight(opened, EXPERT, row, range(3, 13))
    packed = view.packed
    assert packed is not None
    per_word = packed.columns_per_word
    assert view.columns.start == 3 // per_word * per_word
    assert view.columns.stop == -(-13 // per_word) * per_word
    shown = slice(view.columns.start, view.columns.stop)
    np.testing.assert_array_equal(view.values, one.values[f"{EXPERT}.weight"][row, shown])
    words = one.stored[f"{EXPERT}.weight_packed"][row].view(np.uint32)
    assert packed.words.tolist() == words[packed.first_word :][: len(packed.words)].tolist()
    # By hand, digit by digit: the lowest bits of a word are its first column.
    mask = (1 << packed.bits) - 1
    by_hand = [(w >> (i * packed.bits)) & mask for w in packed.words.tolist()
               for i in range(per_word)]  # fmt: skip
    assert view.patterns.tolist() == by_hand
    assert packed.codes.tolist() == [u - (1 << (packed.bits - 1)) for u in by_hand]
    scales = one.stored[f"{EXPERT}.weight_scale"][row].astype(np.float64)
    assert [group.scale for group in packed.groups] == scales.tolist()
    np.testing.assert_array_equal(view.values, packed.codes * scales[np.array(view.columns) // 4])


def test_a_groups_error(one: Small, opened: checkpoint.Checkpoint) -> None:
    view = explain.weight(opened, EXPERT, 1)
    assert view.packed is not None
    for group in view.packed.groups:
        values = one.values[f"{EXPERT}.weight"][1, group.columns.start : group.columns.stop]
        assert group.half_step == group.scale / 2
        assert group.greatest == np.abs(values).max()
        assert group.rms == pytest.approx(np.sqrt(np.mean(values**2)))
        half = 1 << (view.packed.bits - 1)
        ends = np.isin(np.rint(values / group.scale), (-half, half - 1)).sum()
        assert group.at_the_ends == ends


def test_rounding_errors_are_as_said() -> None:
    """Weights that are known are quantised to INT4: none is off by more than half a step and what
    dividing in bfloat16 adds, and the RMS error is scale / sqrt(12)."""
    from laguna_ref.checkpoint.formats.packed_int import quantise

    weights = np.random.default_rng(0).normal(0, 1, (64, 128)).astype(ml_dtypes.bfloat16)
    codes, scale = quantise(weights, 4, 128)
    steps = scale.astype(np.float64)
    ratio = weights.astype(np.float64) / steps
    errors = codes - ratio
    assert (np.abs(errors) <= quantisation_error(ratio, 4)).all()
    # A mean of n squares that are spread evenly strays by 0.9 / sqrt(n), its root by half of that.
    strays = STANDARD_DEVIATIONS * 0.45 / np.sqrt(errors.size)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(12**-0.5, rel=strays)


def test_counts_of_codes_are_of_the_matrix(one: Small, opened: checkpoint.Checkpoint) -> None:
    view = explain.weight(opened, EXPERT)
    assert view.packed is not None
    counts = view.packed.counts
    assert counts.sum() == one.values[f"{EXPERT}.weight"].size
    assert view.packed.rows_counted == view.shape[0]


@pytest.mark.parametrize("name", [EXPERT, f"{EXPERT}.weight_packed", f"{EXPERT}.weight_scale"])
def test_names_of_one_packed_weight(opened: checkpoint.Checkpoint, name: str) -> None:
    assert explain.weight(opened, name).name == EXPERT


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.weight",
     "model.norm.weight", "model.layers.1.self_attn.k_scale",
     "model.layers.1.mlp.experts.e_score_correction_bias"],
)  # fmt: skip
def test_a_dense_tensor(one: Small, opened: checkpoint.Checkpoint, name: str) -> None:
    view = explain.weight(opened, name)
    stored = one.stored.get(name, one.stored.get(f"{name}.weight"))
    assert stored is not None
    flat = stored if stored.ndim == 2 else stored.reshape(1, -1)
    shown = flat[0, : len(view.columns)]
    np.testing.assert_array_equal(view.values, shown.astype(np.float64))
    assert view.patterns.tobytes() == shown.tobytes()
    assert view.packed is None
    assert view.shape == stored.shape


def test_transformers_spelling_is_understood(opened: checkpoint.Checkpoint) -> None:
    view = explain.weight(opened, "model.layers.1.mlp.shared_experts.up_proj")
    assert view.shape == (8, 24)


@pytest.mark.parametrize(
    ("name", "row", "columns", "message"),
    [
        ("model.layers.1.mlp.expert.2.gate_proj", 0, None, f"no such tensor; expected {EXPERT}"),
        ("model.layers.1.self_atn.k_proj", 0, None, r"model\.layers\.1\.self_attn\.k_proj"),
        ("nothing", 0, None, "no such tensor"),
        (EXPERT, 8, None, "no such row; expected 0 to 7; found 8"),
        (EXPERT, -1, None, "no such row"),
        (EXPERT, 0, range(20, 25), "no such columns; expected within 0 to 23"),
        (EXPERT, 0, range(5, 5), "no such columns"),
    ],
)
def test_what_is_not_there(
    opened: checkpoint.Checkpoint, name: str, row: int, columns: range | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        explain.weight(opened, name, row, columns)


def test_the_folder_may_go(tmp_path: Path) -> None:
    """Values are copies: they outlive the memory map."""
    small().write(tmp_path / "model")
    opened = checkpoint.open(tmp_path / "model")
    view = explain.weight(opened, "lm_head", 2, range(2, 4))
    del opened
    assert view.values.tolist() == small().values["lm_head.weight"][2, 2:4].tolist()
