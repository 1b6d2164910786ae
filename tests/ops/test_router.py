"""The router: choice, ties, bias, weights, score functions, soft-capping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.checkpoint import DenseWeight
from laguna_ref.numerics import BF16, BFLOAT16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops.router import RouterSpec, route
from tests import naive, tolerances

SPEC = RouterSpec(top_k=2, score_func="sigmoid", logit_softcapping=0.0, norm_topk_prob=True)


def routed(
    logits: Any, bias: Any = None, spec: RouterSpec = SPEC, numerics: Numerics = FLOAT64
) -> Any:
    """The router of tokens whose logits are given: an identity as weight."""
    x = numerics.cast(np.asarray(logits, dtype=np.float64))
    experts = x.shape[1]
    weight = DenseWeight("gate", np.eye(experts, dtype=np.float32))
    bias = np.zeros(experts) if bias is None else np.asarray(bias)
    return route(x, weight, bias, spec, numerics)


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=6),
    st.sampled_from(["sigmoid", "softmax", "sqrtsoftplus"]),
    st.booleans(),
    st.sampled_from([0.0, 1.5]),
    st.integers(0, 99),
)
def test_against_the_naive_one(
    logits: list[float], score_func: str, normed: bool, cap: float, seed: int
) -> None:
    k = min(2, len(logits))
    bias = np.random.default_rng(seed).normal(0, 0.2, len(logits))
    found = routed([logits], bias, RouterSpec(k, score_func, cap, normed))
    capped = [cap * np.tanh(z / cap) for z in logits] if cap else logits
    config = {
        "num_experts_per_tok": k,
        "moe_router_score_func": score_func,
        "norm_topk_prob": normed,
    }
    ids, weights, margin = naive.route(config, capped, bias.tolist())
    tolerances.assert_within(found[0][0], capped, tolerances.roundings(6, np.float64), "logits")
    if margin > tolerances.roundings(16, np.float64):
        assert found[1][0].tolist() == ids
        tolerances.assert_within(found[2][0], weights, tolerances.roundings(24, np.float64))


def test_ties_go_to_the_lower_index() -> None:
    logits = [[0.5, 0.5, 0.5, 0.2], [0.1, 0.7, 0.7, 0.7], [0.0, -0.0, 0.0, -0.0]]
    assert routed(logits)[1].tolist() == [[0, 1], [1, 2], [0, 1]]


def test_the_bias_changes_the_choice_never_the_weights() -> None:
    logits = [[2.0, 1.0, 0.0, -1.0]]
    _, ids, weights = routed(logits, bias=[0.0, 0.0, 0.0, 10.0])
    assert ids.tolist() == [[3, 0]]
    scores = [naive.sigmoid(-1.0), naive.sigmoid(2.0)]
    expected = [[s / sum(scores) for s in scores]]
    tolerances.assert_within(weights, expected, tolerances.roundings(20, np.float64))


def test_an_equal_bias_for_all_changes_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 8))
    plain, biased = routed(logits), routed(logits, bias=np.full(8, 0.5))
    for a, b in zip(plain, biased, strict=True):
        assert np.array_equal(a, b)


def test_without_renormalisation_the_weights_are_the_scores() -> None:
    _, _, weights = routed([[1.0, 0.0]], spec=replace(SPEC, norm_topk_prob=False))
    expected = [[naive.sigmoid(1.0), naive.sigmoid(0.0)]]
    tolerances.assert_within(weights, expected, tolerances.roundings(8, np.float64))


@pytest.mark.parametrize("numerics", [FLOAT64, FLOAT32, BFLOAT16], ids=lambda n: n.name)
def test_renormalised_weights_sum_to_one(numerics: Numerics) -> None:
    _, _, weights = routed(np.random.default_rng(0).normal(size=(9, 6)), numerics=numerics)
    dtype = BF16 if numerics is BFLOAT16 else numerics.dtype
    off = np.abs(weights.astype(np.float64).sum(axis=1) - 1).max()
    assert off <= tolerances.roundings(6, dtype)


def test_logits_are_recorded_after_soft_capping() -> None:
    logits, _, _ = routed([[100.0, -100.0]], spec=replace(SPEC, logit_softcapping=3.0))
    assert logits.tolist() == [[3.0, -3.0]]


def test_bfloat16_rounds_the_logits_before_the_sigmoid() -> None:
    """Two logits that bfloat16 cannot tell apart are a tie: the lower index goes first."""
    logits = [[1.0, 1.0009, 0.0]]
    assert routed(logits)[1].tolist() == [[1, 0]]
    assert routed(logits, numerics=BFLOAT16)[1].tolist() == [[0, 1]]


def test_bfloat16_holds_the_bias_in_bfloat16() -> None:
    bias = [1.0, 1.0009, 0.0]
    logits = [[0.0, 0.0, 0.0]]
    assert routed(logits, bias)[1].tolist() == [[1, 0]]
    assert routed(logits, bias, numerics=BFLOAT16)[1].tolist() == [[0, 1]]
