"""Two models side by side: errors against whole traces, and the spelling of sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import laguna_ref
from laguna_ref import explain
from laguna_ref.conformance.faults import CATALOGUE, DIALS
from laguna_ref.errors import InputError
from laguna_ref.explain import diff_view
from tests.small import quantised, small, small_config, tokens_for
from tests.tolerances import KL_BY_DEFINITION, assert_within, model_error

CONFIG = quantised(small_config())
TOKENS = tokens_for(CONFIG, 20, seed=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diff") / "model"
    small(CONFIG).write(path)
    return path


def side(folder: Path, spec: str) -> laguna_ref.Laguna:
    return explain.side(spec, folder, engine="numpy")


@pytest.mark.parametrize("chunk", [128, 6])
def test_errors_flips_and_kl_are_those_of_whole_traces(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(diff_view, "CHUNK", chunk)
    monkeypatch.setattr(diff_view, "ROWS", 3)
    a, b = side(folder, "float64,kv=float"), side(folder, "float64,kv=float,fault:gate.sigmoid")
    view = explain.diff(a, b, TOKENS)
    points = []
    for model in (a, b):
        recorder = laguna_ref.Recorder()
        model(TOKENS, trace=recorder)
        points.append(recorder)
    for layer in view.layers:
        at = f"model.layers.{layer.layer.index}"
        for name, found in (("", layer.residual), (".self_attn", layer.attention),
                            (".mlp", layer.mlp)):  # fmt: skip
            x, y = (recorder[at + name] for recorder in points)
            expected = np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)
            assert_within(found, expected, model_error(a.config, 20, np.float64))
        if layer.flipped is None:
            assert layer.layer.mlp == "dense"
            continue
        ids = [recorder[f"{at}.mlp.topk_ids"].tolist() for recorder in points]
        flips = [len(set(x) - set(y)) for x, y in zip(*ids, strict=True)]
        assert layer.flipped.tolist() == flips
    p, q = (np.exp(r["lm_head"]) / np.exp(r["lm_head"]).sum(1, keepdims=True) for r in points)
    assert_within(view.kl, (p * np.log(p / q)).sum(axis=1), KL_BY_DEFINITION)
    assert view.same_top.tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    assert not view.embedding.any()
    assert view.first_layer == 0


def test_a_model_and_itself(folder: Path) -> None:
    view = explain.diff(side(folder, "base"), side(folder, "base"), TOKENS)
    assert view.first_layer is None
    assert not view.kl.any()
    assert view.same_top.all()


def test_the_first_layer_of_a_fault(folder: Path) -> None:
    view = explain.diff(side(folder, "base"), side(folder, "fault:router.scaling_missing"), TOKENS)
    assert view.first_layer == 1  # layer 0 is dense
    view = explain.diff(
        side(folder, "base"), side(folder, "fault:embedding.ids_off_by_one"), TOKENS
    )
    assert view.first_layer == -1


def test_every_fault_can_be_a_side(folder: Path) -> None:
    """Those that break nothing in this model, or show in generation only, give no difference."""
    base = side(folder, "base")
    for name in CATALOGUE:
        view = explain.diff(base, side(folder, f"fault:{name}"), TOKENS[:7])
        assert view.kl.shape == (7,)


@pytest.mark.parametrize(
    ("spec", "attribute", "value"),
    [
        ("float64", "numerics.name", "float64"),
        ("bfloat16", "numerics.dequant", "bf16"),
        ("bfloat16,dequant=exact", "numerics.dequant", "exact"),
        ("numerics=float64", "numerics.name", "float64"),
        ("engine=numba", "engine.__name__", "laguna_ref.engines.numba_engine"),
        ("base", "numerics.name", "float32"),
    ],
)
def test_terms(folder: Path, spec: str, attribute: str, value: str) -> None:
    found: object = side(folder, spec)
    for name in attribute.split("."):
        found = getattr(found, name)
    assert found == value


def test_terms_of_the_cache(folder: Path) -> None:
    def fp8(spec: str) -> list[bool]:
        return [one.fp8 for one in side(folder, spec).kv_formats]

    assert fp8("base") == [True, True, True]
    assert fp8("kv=float") == [False, False, False]
    assert fp8("skip=0-1") == [False, False, True]
    assert fp8("skip=0+2") == [False, True, False]
    assert fp8("kv=fp8,skip=sliding_window") == [True, False, False]


def test_a_fault_with_a_number(folder: Path) -> None:
    configured = DIALS[0].configured(side(folder, "base"))
    assert configured == 1.0
    same = side(folder, f"fault:rope.attention_factor={configured}")
    assert explain.diff(side(folder, "base"), same, TOKENS).first_layer is None
    other = side(folder, "fault:rope.attention_factor=1.5")
    assert explain.diff(side(folder, "base"), other, TOKENS).first_layer == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("float16", "no such side; expected base, float64"),
        ("float32,", "no such side; .*found nothing"),
        ("kv=int8", "unknown kv; expected checkpoint or float or fp8; found int8"),
        ("fault:rope.scaling_ignore", r"no such fault; expected rope\.scaling_ignored"),
        ("fault:rope.attention_factor", "needs a number; expected .*configured is 1.0"),
        ("fault:rope.attention_factor=big", "not a number; found big"),
        ("fault:gate.sigmoid=1", "no such number to change"),
        ("skip=9", "cannot skip"),
    ],
)
def test_spellings_that_mean_nothing(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        side(folder, spec)


def test_models_that_are_not_alike(folder: Path) -> None:
    other = small(small_config(vocab_size=50)).load()
    with pytest.raises(
        InputError, match="vocab_size: the two models differ; expected 40; found 50"
    ):
        explain.diff(side(folder, "base"), other, TOKENS)


def test_relative_error_of_nothing() -> None:
    x = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    y = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 4.5]])
    assert diff_view.relative_error(x, y).tolist() == [0, np.inf, 0.1]
