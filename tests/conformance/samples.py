"""Goldens and dumps in memory: what the judge sees of files, without files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import laguna_ref
from laguna_ref.conformance.budget import Budget, measure
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.replay import run

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    name: str
    tokens: tuple[int, ...]
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Identity:
    weights_sha256: str = "0" * 64


@dataclass(frozen=True)
class Choice:
    ids: Array
    weights: Array | None
    margin: Array | None = None


@dataclass(frozen=True)
class Golden:
    case: Case
    points: Mapping[str, Array]
    logits: Array
    routing: Mapping[int, Any]
    budget: Mapping[str, Array]
    budget_meta: dict[str, Any] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    identity: Identity = field(default_factory=Identity)


@dataclass(frozen=True)
class Dump:
    tokens: Array
    positions: Array
    points: Mapping[str, Array]
    routing: Mapping[int, Any] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, **points: Any) -> Dump:
        return replace(self, points={**self.points, **points})

    def only(self, *names: str) -> Dump:
        return replace(self, points={name: self.points[name] for name in names})


@lru_cache
def tiny(kv_cache: str = "checkpoint", numerics: str = "float32") -> laguna_ref.Laguna:
    return laguna_ref.load(engine="numpy", numerics=numerics, kv_cache=kv_cache)


def prompt(count: int, seed: int = 28) -> tuple[int, ...]:
    """Tokens of Python source would be more typical; random ones leave no expert unused.

    Of the default ones (24) none meets a near tie: each choice is 1e-3 clear.
    """
    return tuple(np.random.default_rng(seed).integers(70, 3072, count).tolist())


def golden_of(model: laguna_ref.Laguna, tokens: tuple[int, ...], budget: Budget) -> Golden:
    trace = run(model, np.array(tokens), np.arange(len(tokens)))
    routing = {
        spec.index: Choice(
            trace[f"model.layers.{spec.index}.mlp.topk_ids"],
            trace[f"model.layers.{spec.index}.mlp.topk_weights"],
            np.full(len(tokens), np.inf),
        )
        for spec in model.config.layers
        if spec.mlp == "sparse"
    }
    points = {name: array for name, array in trace.items() if ".topk_" not in name}
    logits = points.pop("lm_head")
    arrays, meta = budget.to_arrays()
    settings = {"dequant": model.numerics.dequant, "kv_cache": "checkpoint"}
    return Golden(Case("sample", tokens), points, logits, routing, arrays, meta, settings)


def dump_of(model: laguna_ref.Laguna, tokens: tuple[int, ...], **meta: Any) -> Dump:
    positions = np.arange(len(tokens))
    return Dump(np.array(tokens), positions, run(model, np.array(tokens), positions), meta=meta)


@lru_cache
def budget_of(
    precision: str, count: int, runs: int, kv_cache: str = "checkpoint", seed: int = 0
) -> Budget:
    return budget_for(tiny(kv_cache), prompt(count), precision, runs, seed)


def budget_for(
    model: laguna_ref.Laguna, tokens: tuple[int, ...], precision: str, runs: int, seed: int = 0
) -> Budget:
    places = np.arange(len(tokens))
    return measure(model, np.array(tokens), places, PRESETS[precision], runs=runs, seed=seed)
