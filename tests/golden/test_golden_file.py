"""Golden files: nothing is lost, nothing damaged believed, nothing of another model's used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from laguna_ref.checkpoint import safetensors_writer
from laguna_ref.checkpoint.safetensors_writer import write_file
from laguna_ref.golden import Golden, GoldenError, identity_of, make, read_golden, write_golden
from laguna_ref.golden import identity as identities
from laguna_ref.golden.golden_file import results_of, tensors_of
from tests.golden.models import CONFIG, TOKENS, case, checkpoint, golden, loaded
from tests.small import small, small_config


def with_budget() -> Golden:
    budget = {"scale/lm_head": np.ones((2, 3), ml_dtypes.bfloat16), "runs": np.array([3], np.int32)}
    return replace(golden(), budget=budget, budget_meta={"rate": 0.01, "per": ["report"]})


GOLDENS: dict[str, Any] = {
    "full": golden,
    "summary": lambda: make(loaded(), case(logits_at=None), full_logits_up_to=0),
    "positions": lambda: make(loaded(), case(positions=tuple(range(50, 59)))),
    "budget": with_budget,
    "no points": lambda: make(loaded(), case(points=(), logits_at=())),
}


def stored(path: Path, what: str = "full") -> Path:
    write_golden(path / "x.safetensors", GOLDENS[what]())
    return path / "x.safetensors"


@pytest.mark.parametrize("what", GOLDENS)
def test_what_is_written_is_read(tmp_path: Path, what: str) -> None:
    before, after = GOLDENS[what](), read_golden(stored(tmp_path, what), loaded())
    assert after.case == before.case
    assert after.identity == before.identity
    assert after.settings == before.settings
    assert list(after.points) == list(before.points)
    assert list(after.routing) == list(before.routing)
    assert after.budget_meta == before.budget_meta
    assert after.logits.at == before.logits.at
    mine, its = tensors_of(before), tensors_of(after)
    assert sorted(mine) == sorted(its)
    for name, array in mine.items():
        assert its[name].dtype == array.dtype, name
        assert np.array_equal(its[name], array), name


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    with safe_open(stored(tmp_path), framework="numpy") as file:
        assert file.get_tensor("tokens").tolist() == list(TOKENS)
        assert file.get_tensor("logits").shape == (2, 40)
        header = {key: json.loads(text) for key, text in file.metadata().items()}
    assert header["kind"] == "laguna-golden"
    assert header["version"] == 1
    assert header["case"]["kv_cache"] == "fp8"
    assert set(header["tensors_sha256"]) == set(tensors_of(golden()))


@given(st.data())
def test_a_byte_that_changes_anywhere_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = stored(tmp_path_factory.mktemp("golden"))
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with pytest.raises(GoldenError, match=r"x\.safetensors"):
        read_golden(path)


@given(st.data())
def test_a_file_cut_short_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = stored(tmp_path_factory.mktemp("golden"))
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(GoldenError, match=r"x\.safetensors"):
        read_golden(path)


def rewritten(path: Path, **changes: str) -> Path:
    """The same file with other entries in its header."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() | changes
    specs = [
        safetensors_writer.TensorSpec(name, safetensors_writer.DTYPE_NAMES[a.dtype], a.shape)
        for name, a in arrays.items()
    ]
    write_file(path, safetensors_writer.aligned(specs), arrays.__getitem__, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "2"}, "made by a newer version of this package; expected format version 1"),
        ({"version": "0"}, "unknown version"),
        ({"kind": '"other"'}, "not a golden file"),
        ({"kind": "{"}, "not a golden file"),
        ({"case": "{}"}, "damaged: its header is not the one that was written"),
    ],
)
def test_other_headers(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(GoldenError, match=message):
        read_golden(rewritten(stored(tmp_path), **changes))


def test_no_golden_at_all(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="cannot be read"):
        read_golden(tmp_path / "none.safetensors")
    checkpoint().write(tmp_path / "model")
    with pytest.raises(GoldenError, match="not a golden file"):
        read_golden(tmp_path / "model" / "model.safetensors")


def test_another_checkpoints_golden_is_refused_with_both_values(tmp_path: Path) -> None:
    path = stored(tmp_path)
    others = {
        "config_sha256": small(CONFIG | {"rms_norm_eps": 1e-5}),
        "tensors_sha256": small(small_config()),
        "weights_sha256": small(CONFIG, seed=1),
    }
    mine = golden().identity
    for key, other in others.items():
        model = other.load()
        its = identity_of(model.checkpoint)
        if key == "tensors_sha256":  # what differs first is the config
            its = replace(its, config_sha256=mine.config_sha256)
            with pytest.raises(GoldenError, match=key):
                mine.require(its, str(path))
            continue
        with pytest.raises(GoldenError, match=key) as caught:
            read_golden(path, model)
        assert getattr(mine, key) in str(caught.value)
        assert getattr(its, key) in str(caught.value)


def test_identity_does_not_depend_on_how_files_are_cut(tmp_path: Path) -> None:
    model = checkpoint()
    model.write(tmp_path / "one")
    model.write(tmp_path / "shards", max_shard_bytes=3000)
    from laguna_ref import checkpoint as checkpoints

    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 3
    one, cut = (identity_of(checkpoints.open(tmp_path / name)) for name in ("one", "shards"))
    assert one == cut == golden().identity


def test_the_revision_of_a_hub_folder(tmp_path: Path) -> None:
    from laguna_ref import checkpoint as checkpoints

    folder = tmp_path / "models--x" / "snapshots" / "abc123"
    checkpoint().write(folder)
    found = identity_of(checkpoints.open(folder))
    assert found.revision == "abc123"
    found.require(golden().identity, "file")


def test_a_sample_of_large_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it is sampled, other weights are noticed, and it lies where it is said to."""
    model = loaded().checkpoint
    whole = b"".join(model.tensor(name).tobytes() for name in sorted(model.tensors))
    monkeypatch.setattr(identities, "BLOCKS", 7)
    monkeypatch.setattr(identities, "BLOCK_BYTES", 100)
    import hashlib

    digest = hashlib.sha256(str(len(whole)).encode())
    for block in range(7):
        start = block * (len(whole) - 100) // 6
        digest.update(whole[start : start + 100])
    assert identity_of(model).weights_sha256 == digest.hexdigest()


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors_writer.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_results_hash_leaves_out_versions_and_budgets() -> None:
    other = replace(with_budget(), settings=dict(golden().settings) | {"versions": {}})
    assert results_of(other) == results_of(golden())
