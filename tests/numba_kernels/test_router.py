"""The router: logits, choice and weights in every score function, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.checkpoint import DenseWeight
from laguna_ref.engines import numba_engine
from laguna_ref.numerics import BF16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops.router import RouterSpec
from laguna_ref.ops.router import route as plain
from tests import tolerances
from tests.numba_kernels import definition
from tests.numba_kernels.drawn import ALL_NUMERICS, activations, generator, weight

SCORES = ("sigmoid", "softmax", "sqrtsoftplus")
NUMERICS = pytest.mark.parametrize("numerics", ALL_NUMERICS.values(), ids=lambda n: n.name)


def through(engine: Any, logits: Any, bias: Any, spec: RouterSpec, numerics: Numerics) -> Any:
    """A route whose logits are given: exact products with an identity."""
    x = numerics.cast(np.asarray(logits, np.float64))
    identity = DenseWeight("gate", np.eye(x.shape[1], dtype=np.float32))
    return engine(x, identity, np.asarray(bias), spec, numerics)


def score_error(score_func: str, experts: int, numerics: Numerics) -> float:
    """Of two scores, relative."""
    if score_func == "softmax":
        ulp = 2 * tolerances.GREATEST_ULP["exp", numerics.dtype.name] + 2
        return tolerances.roundings(2 * int(np.ceil(ulp)) + 2 * experts + 4, numerics.dtype)
    name = "softplus" if score_func == "sqrtsoftplus" else "sigmoid"
    return tolerances.two_activations(name, numerics.dtype) + tolerances.roundings(
        2, numerics.dtype
    )


def cap_error(cap: float, numerics: Numerics) -> float:
    """Of two soft-capped logits, absolute: a quotient, tanh and a product, of at most the cap."""
    return cap * (tolerances.two_activations("tanh", numerics.dtype) + 4 * 2.0**-52)


@pytest.mark.parametrize("score_func", SCORES)
@NUMERICS
@given(
    tokens=st.sampled_from([1, 2, 9, 65]),
    experts=st.sampled_from([1, 2, 7, 8, 9, 64]),
    share=st.floats(0, 1),
    cap=st.sampled_from([0.0, 1.5, 30.0]),
    normed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_against_the_plain_one(
    score_func: str, numerics: Numerics, tokens: int, experts: int, share: float, cap: float,
    normed: bool, seed: int,
) -> None:  # fmt: skip
    top_k = 1 + int(share * (experts - 1))
    spec = RouterSpec(top_k, score_func, cap, normed)
    logits = 2 * activations(numerics, tokens, experts, seed=seed)
    bias = generator(seed).normal(0, 0.2, experts).astype(np.float32)
    found = through(numba_engine.route, logits, bias, spec, numerics)
    expected = through(plain, logits, bias, spec, numerics)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    off = cap_error(cap, numerics)
    assert np.abs(found[0] - expected[0]).max() <= off
    assert found[1].dtype == np.int64

    # A score's slope is at most its own size (softmax, sigmoid) or that of a root of softplus.
    moved = score_error(score_func, experts, numerics) + 2 * off
    clear = margins(numerics, expected[0], bias, spec) > 4 * moved
    assert np.array_equal(found[1][clear], expected[1][clear])
    error = 2 * moved + tolerances.roundings(2 * top_k + 2, numerics.dtype)
    if numerics.rounds:
        error += tolerances.roundings(2, BF16)
    off_weights = np.abs(found[2] - expected[2])[clear]
    assert (off_weights <= error * np.abs(expected[2][clear])).all()
    if numerics is FLOAT64 and cap == 0:
        assert clear.mean() > 0.9, "the case compares nothing"


def margins(numerics: Numerics, logits: Any, bias: Any, spec: RouterSpec) -> Any:
    """By how much each token's neighbours in the order of selection are apart."""
    experts = logits.shape[1]
    if experts == 1:
        return np.full(len(logits), np.inf)
    everything = RouterSpec(experts, spec.score_func, 0.0, False)
    x = np.asarray(logits, np.float64)
    _, ids, scores = through(plain, x, np.zeros(experts), everything, FLOAT64)
    by_expert = np.empty_like(scores)
    np.put_along_axis(by_expert, ids, scores, axis=1)
    selection = by_expert + numerics.round_at("router.bias", numerics.cast(bias)).astype(np.float64)
    ordered = -np.sort(-selection, axis=1)
    return (ordered[:, :-1] - ordered[:, 1:])[:, : spec.top_k].min(axis=1)


@NUMERICS
@pytest.mark.parametrize("score_func", SCORES)
def test_ties_go_to_the_lower_index(score_func: str, numerics: Numerics) -> None:
    logits = [[0.5, 0.5, 0.5, 0.25], [0.125, 0.75, 0.75, 0.75], [0.0, -0.0, 0.0, -0.0]]
    spec = RouterSpec(2, score_func, 0.0, True)
    _, ids, weights = through(numba_engine.route, logits, np.zeros(4), spec, numerics)
    assert ids.tolist() == [[0, 1], [1, 2], [0, 1]]
    assert np.array_equal(weights, np.full((3, 2), 0.5))


@pytest.mark.parametrize("score_func", SCORES)
@pytest.mark.parametrize("lane", range(9))
def test_equal_logits_have_equal_scores_in_every_lane(score_func: str, lane: int) -> None:
    logits = np.full((1, 9), 0.3)
    logits[0, lane] = 0.1
    _, ids, weights = through(
        numba_engine.route, logits, np.zeros(9), RouterSpec(8, score_func, 0.0, True), FLOAT32
    )
    assert ids[0].tolist() == [e for e in range(9) if e != lane]
    assert len(set(weights[0].tolist())) == 1


def test_softmax_is_as_defined() -> None:
    """Its sum has lanes and a tree; experts beyond a whole vector count."""
    logits = activations(FLOAT32, 1, 21)
    spec = RouterSpec(21, "softmax", 0.0, False)
    _, ids, weights = through(numba_engine.route, logits, np.zeros(21), spec, FLOAT32)
    by_expert = np.empty(21, np.float32)
    by_expert[ids[0]] = weights[0]
    e = numba_engine._each(numba_engine.rows.exp, logits - logits.max())[0]
    assert np.array_equal(by_expert, e / definition.lane_sum(e, 0, np.float32))


@NUMERICS
def test_each_token_by_itself_has_the_same_bits(numerics: Numerics) -> None:
    gate, bias = weight("bf16", 37, 24), generator(5).normal(0, 0.1, 37).astype(np.float32)
    x = activations(numerics, 67, 24)
    for score_func in SCORES:
        spec = RouterSpec(5, score_func, 2.0, True)
        whole = numba_engine.route(x, gate, bias, spec, numerics)
        for t in (0, 1, 33, 66):
            single = numba_engine.route(x[t : t + 1], gate, bias, spec, numerics)
            for a, b in zip(single, whole, strict=True):
                assert np.array_equal(a, b[t : t + 1])


def test_a_float32_bias_chooses_and_does_not_weigh() -> None:
    logits, bias = [[0.0, 1.0, 2.0]], np.array([9.0, 0.0, 0.0], np.float32)
    spec = RouterSpec(2, "sigmoid", 0.0, False)
    _, ids, weights = through(numba_engine.route, logits, bias, spec, FLOAT64)
    assert ids.tolist() == [[0, 2]]
    assert weights[0, 0] == 0.5
