"""The SwiGLU block and the sums around it."""

from __future__ import annotations

from typing import Any

import numpy as np

from laguna_ref.checkpoint import DenseWeight
from laguna_ref.numerics import BFLOAT16, FLOAT64
from laguna_ref.ops.mlp import mlp
from laguna_ref.ops.residual import add, combine
from laguna_ref.weights import MLPWeights
from tests import naive, tolerances
from tests.small import BF16


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def test_against_the_naive_one() -> None:
    parts = [drawn(5, 6), drawn(5, 6, seed=1), drawn(6, 5)]
    names = ("gate_proj", "up_proj", "down_proj")
    stored = {f"m.{n}.weight": p for n, p in zip(names, parts, strict=True)}
    x = drawn(3, 6)
    weights = MLPWeights(*(DenseWeight("w", p.astype(np.float32)) for p in parts))
    stored = {n: p.astype(np.float32).astype(np.float64) for n, p in stored.items()}
    expected = [naive.swiglu(row, stored, "m") for row in x.tolist()]
    error = 2 * tolerances.roundings(6 + 8 + 5, np.float64) * 6
    tolerances.assert_within(mlp(x, weights, FLOAT64), expected, error)


def test_only_the_routed_sum_is_scaled() -> None:
    routed, shared = drawn(3, 4), drawn(3, 4, seed=1)
    assert np.array_equal(combine(routed, shared, 2.5, FLOAT64), routed * 2.5 + shared)


def test_bfloat16_rounds_the_scaled_sum_before_adding() -> None:
    def r(x: Any) -> Any:
        return np.asarray(x, np.float32).astype(BF16).astype(np.float32)

    routed, shared = r(drawn(30, 4)), r(drawn(30, 4, seed=1))
    assert np.array_equal(combine(routed, shared, 2.7, BFLOAT16), r(r(routed * 2.7) + shared))
    assert np.array_equal(add(routed, shared, BFLOAT16), r(routed + shared))
