"""The routed experts: what is summed, in which order, by which blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from laguna_ref.checkpoint import DenseWeight
from laguna_ref.numerics import BFLOAT16, FLOAT32, FLOAT64
from laguna_ref.ops import experts as op
from laguna_ref.ops.experts import experts
from laguna_ref.ops.mlp import mlp
from laguna_ref.weights import MLPWeights
from tests import naive, tolerances
from tests.small import BF16

HIDDEN, WIDTH, COUNT = 6, 4, 5


def expert(seed: int) -> MLPWeights:
    random = np.random.default_rng(seed)

    def weight(name: str, rows: int, columns: int) -> DenseWeight:
        return DenseWeight(name, random.normal(size=(rows, columns)).astype(BF16))

    return MLPWeights(
        weight("gate_proj", WIDTH, HIDDEN),
        weight("up_proj", WIDTH, HIDDEN),
        weight("down_proj", HIDDEN, WIDTH),
    )


EXPERTS = [expert(seed) for seed in range(COUNT)]


def case(tokens: int = 7, k: int = 2) -> Any:
    random = np.random.default_rng(0)
    ids = np.array([random.permutation(COUNT)[:k] for _ in range(tokens)])
    return random.normal(size=(tokens, HIDDEN)), ids, random.random((tokens, k))


def naively(x: Any, ids: Any, weights: Any) -> Any:
    out = np.zeros_like(x)
    for t in range(len(x)):
        for k, e in enumerate(ids[t].tolist()):
            names = ("gate_proj", "up_proj", "down_proj")
            parts = {f"e.{n}.weight": getattr(EXPERTS[e], n).rows(dtype=np.float64) for n in names}
            out[t] += weights[t, k] * np.array(naive.swiglu(x[t].tolist(), parts, "e"))
    return out


def test_against_the_naive_one() -> None:
    x, ids, weights = case()
    # Two dot products of D, silu, product, one of F, weighted sum of K; twice.
    error = 2 * tolerances.roundings(HIDDEN + 8 + WIDTH + 2, np.float64) * HIDDEN
    found = experts(x, ids, weights, EXPERTS, FLOAT64)
    tolerances.assert_within(found, naively(x, ids, weights), error)


@pytest.mark.parametrize("numerics", [FLOAT64, FLOAT32, BFLOAT16], ids=lambda n: n.name)
def test_blocks_of_tokens_do_not_show(monkeypatch: pytest.MonkeyPatch, numerics: Any) -> None:
    x, ids, weights = (numerics.cast(a) if a.dtype.kind == "f" else a for a in case())
    whole = experts(x, ids, weights, EXPERTS, numerics)
    monkeypatch.setattr(op, "MAX_SLOT_BYTES", 1)
    single = experts(x, ids, weights, EXPERTS, numerics)
    # In bfloat16 a turned rounding: an ulp at each of five points.
    points = 2 * (HIDDEN + WIDTH) if numerics is not BFLOAT16 else 2 * 5
    dtype = numerics.dtype if numerics is not BFLOAT16 else BF16
    tolerances.assert_within(single, whole, tolerances.roundings(points, dtype) * 2)


def test_an_expert_that_nobody_chose_may_hold_anything() -> None:
    x, ids, weights = case()
    ids = np.where(ids == 3, 4, ids)
    ids[:, 1] = (ids[:, 0] + 1) % 3
    poisoned = list(EXPERTS)
    broken = DenseWeight("x", np.full((WIDTH, HIDDEN), np.nan, BF16))
    poisoned[3] = MLPWeights(broken, broken, broken)
    whole = experts(x, ids, weights, EXPERTS, FLOAT64)
    assert np.array_equal(experts(x, ids, weights, poisoned, FLOAT64), whole)


def test_the_sum_is_in_top_k_order() -> None:
    """bfloat16 numerics add in float32, first chosen first: 2^24 + 1 + 1 is 2^24."""
    ones = DenseWeight("ones", np.ones((1, 1), np.float32))
    great = DenseWeight("great", np.full((1, 1), 2.0**24, np.float32))
    unit = MLPWeights(ones, ones, ones)
    large = MLPWeights(ones, ones, great)
    x = np.array([[64.0]], np.float32)
    share = np.array([[1.0, 1.0, 1.0]], np.float32)
    outputs = [unit, unit, large]
    sizes = [float(mlp(x, e, FLOAT32)[0, 0]) for e in outputs]
    for order in ([0, 1, 2], [2, 0, 1], [0, 2, 1]):
        expected = np.float32(0)
        for index in order:
            expected = np.float32(expected + np.float32(sizes[index]))
        found = experts(x, np.array([order]), share, outputs, FLOAT32)
        assert found[0, 0] == expected, order


def test_bfloat16_rounds_each_weighted_output_and_the_sum_once() -> None:
    x, ids, weights = case(tokens=4, k=3)
    x, weights = (BFLOAT16.round_at("linear", a.astype(np.float32)) for a in (x, weights))

    def r(a: Any) -> Any:
        return np.asarray(a, np.float32).astype(BF16).astype(np.float32)

    expected = np.zeros_like(x)
    for t in range(len(x)):
        total = np.zeros(HIDDEN, np.float32)
        for k in range(3):
            total += r(mlp(x[t : t + 1], EXPERTS[ids[t, k]], BFLOAT16)[0] * weights[t, k])
        expected[t] = r(total)
    found = experts(x, ids, weights, EXPERTS, BFLOAT16)
    # Rows of one product and of many may be summed in different orders: an ulp at four points.
    tolerances.assert_within(found, expected, tolerances.roundings(2 * 4, BF16))
