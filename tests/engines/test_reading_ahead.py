"""Which weights are asked for, when, and how often; results do not change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref import checkpoint
from laguna_ref.engines import numba_engine, reading_ahead
from tests.small import quantised, small_config

CONFIG = quantised(small_config())
TOKENS = [3, 1, 4, 1, 5]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.write(tmp_path / "model", CONFIG, checkpoint.synth(CONFIG))
    return tmp_path / "model"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Major faults as the engine sees them; large is what is small."""
    count = [0]
    monkeypatch.setattr(reading_ahead, "major_faults", lambda: count[0])
    monkeypatch.setattr(reading_ahead, "LARGE", 0)
    return count


def watched(model: laguna_ref.Laguna, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    monkeypatch.setattr(model.checkpoint, "will_need", asked.append)
    return asked


def chosen(model: laguna_ref.Laguna, **options: Any) -> set[str]:
    trace = laguna_ref.Recorder("*.topk_ids")
    model(TOKENS, trace=trace, **options)
    return {
        f"model.layers.{layer.index}.mlp.experts.{expert}.{part}"
        for layer in model.config.layers
        if layer.mlp == "sparse"
        for expert in np.unique(trace[f"model.layers.{layer.index}.mlp.topk_ids"])
        for part in ("gate_proj", "up_proj", "down_proj")
    }


def test_everything_needed_is_asked_for_once(
    folder: Path, faults: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = laguna_ref.load(folder)
    asked = watched(model, monkeypatch)
    experts = chosen(model)
    assert len(asked) == len(set(asked))
    assert {name for name in asked if ".experts." in name} == experts
    # Norms are no matrices, and the embedding's rows are too few to be asked for.
    dense = {
        rule.module for rule in model.checkpoint.rules.values()
        if rule.part in ("linear", "packed") and ".experts." not in rule.module
    }  # fmt: skip
    assert set(asked) - experts == dense
    first = {n: asked.index(f"model.layers.{n}.self_attn.q_proj") for n in (0, 1, 2)}
    assert first[0] == 0
    of_layer_1 = [asked.index(name) for name in experts if name.startswith("model.layers.1.")]
    assert first[1] < first[2] < min(of_layer_1)
    asked.clear()
    model(TOKENS)
    assert asked == []


def test_experts_are_asked_for_again_once_a_thread_had_to_wait(
    folder: Path, faults: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = laguna_ref.load(folder)
    asked = watched(model, monkeypatch)
    model(TOKENS)
    asked.clear()
    model(TOKENS)
    assert asked == []

    def wait(*args: Any) -> Any:
        faults[0] += 1
        return numba_engine.experts(*args)

    monkeypatch.setattr(model.engine.experts, "_engine", SimpleNamespace(experts=wait))
    model(TOKENS)
    monkeypatch.setattr(model.engine.experts, "_engine", numba_engine)
    experts = chosen(model)
    assert set(asked) == experts
    assert len(asked) == len(experts)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_results_and_the_engines_name_stay(folder: Path, faults: list[int], engine: str) -> None:
    ahead = laguna_ref.load(folder, engine=engine)
    plain = laguna_ref.load(folder, engine=engine)
    plain.engine = laguna_ref.engines.engine_by_name(engine)
    assert ahead.engine is not plain.engine
    assert ahead.engine.__name__ == plain.engine.__name__
    assert np.array_equal(ahead(TOKENS), plain(TOKENS))


def test_experts_that_are_a_plain_list_are_not_asked_for(faults: list[int], folder: Path) -> None:
    model = laguna_ref.load(folder)
    mlp: Any = model.weights.layers[1].mlp
    x = np.ones((1, CONFIG["hidden_size"]), dtype=np.float32)
    ids, weights = np.array([[0, 1]]), np.ones((1, 2), dtype=np.float32)
    given = [list(mlp.experts), mlp.experts]
    one, other = (model.engine.experts(x, ids, weights, e, model.numerics) for e in given)
    assert np.array_equal(one, other)


def test_small_checkpoints_are_left_alone(folder: Path) -> None:
    assert laguna_ref.load(folder).engine is numba_engine
