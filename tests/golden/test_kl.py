"""Bounds of KL from a summary hold the exact divergence of full rows between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from laguna_ref.golden.kl import kl_bounds, kl_divergence
from laguna_ref.golden.logits import logsumexp, sampled_columns, summarise
from tests import tolerances

RANDOM = np.random.default_rng(0)


def exact_kl(p: NDArray[Any], q: NDArray[Any]) -> NDArray[Any]:
    """Straight from the definition."""
    logs = [x - np.log(np.exp(x - x.max()).sum()) - x.max() for x in (p, q)]
    return np.sum(np.exp(logs[0]) * (logs[0] - logs[1]))


@st.composite
def rows(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], int, int]:
    """Logits of a reference and of another, and how many are kept of the first."""
    vocabulary = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 0.1, 3.0, 30.0]))
    noise = draw(st.sampled_from([0.0, 1e-3, 1.0, 20.0]))
    p = random.normal(0, spread, (2, vocabulary))
    if draw(st.booleans()):
        p = np.round(p)  # ties
    q = (
        p + random.normal(0, noise, p.shape)
        if draw(st.booleans())
        else random.normal(0, 5, p.shape)
    )
    return p, q, draw(st.integers(1, vocabulary)), draw(st.integers(0, vocabulary))


def greatest_log_probability(*logits: NDArray[Any]) -> float:
    return max(float((logsumexp(x)[:, None] - x).max()) for x in logits)


@given(rows())
def test_the_exact_divergence_lies_between_the_bounds(drawn: Any) -> None:
    p, q, top, sample = drawn
    bounds = kl_bounds(summarise(p, top, sample), q)
    error = tolerances.kl_error(p.shape[1], greatest_log_probability(p, q))
    for row in range(len(p)):
        exact = exact_kl(p[row], q[row])
        assert bounds.lower[row] - error <= exact <= bounds.upper[row] + error
    np.testing.assert_allclose(
        kl_divergence(p, q),
        [exact_kl(*pair) for pair in zip(p, q, strict=True)],
        rtol=0,
        atol=error,
    )


@given(rows(), st.booleans())
def test_the_bounds_meet_where_all_is_known(drawn: Any, by_top: bool) -> None:
    p, q, _, _ = drawn
    everything = p.shape[1]
    summary = summarise(p, everything, 0) if by_top else summarise(p, 1, everything)
    bounds = kl_bounds(summary, q)
    error = tolerances.kl_error(everything, greatest_log_probability(p, q))
    assert np.all(summary.rest == -np.inf)
    assert np.array_equal(bounds.lower, bounds.upper)
    np.testing.assert_allclose(bounds.lower, kl_divergence(p, q), rtol=0, atol=error)


def test_the_bounds_are_attained() -> None:
    """Probability in proportion to the other's for the lower, the least likely for the upper."""
    q = np.log([[0.4, 0.3, 0.1, 0.1, 0.05, 0.05]])
    lower = np.log([[0.4, 0.3, 0.15 * 2 / 3, 0.15 * 2 / 3, 0.05, 0.05]])
    upper = np.log([[0.5, 0.125, 1e-300, 1e-300, 0.125, 0.125]])
    error = tolerances.kl_error(6, 1000.0)
    for p, side, top in ((lower, 0, 2), (upper, 1, 2)):
        found = kl_bounds(summarise(p, top, 0), q)[side]
        np.testing.assert_allclose(found, kl_divergence(p, q), rtol=0, atol=error)


@given(rows())
def test_what_is_kept(drawn: Any) -> None:
    p, _, top, sample = drawn
    summary = summarise(p, top, sample)
    for row in range(len(p)):
        order = sorted(range(p.shape[1]), key=lambda i: (-p[row, i], i))
        assert summary.top_ids[row].tolist() == order[:top]
        assert np.array_equal(summary.top[row], p[row, order[:top]])
        ids, values = summary.known(row)
        assert ids.tolist() == sorted(set(order[:top]) | set(summary.columns.tolist()))
        assert np.array_equal(values, p[row, ids])
        rest = np.delete(p[row], ids)
        expected = (
            np.log(np.sum(np.exp(rest - p[row].max()))) + p[row].max() if len(rest) else -np.inf
        )
        np.testing.assert_allclose(
            summary.rest[row], expected, rtol=tolerances.FLOAT32_UNIT_ROUNDOFF
        )


def test_logsumexp_of_nothing_and_of_far_numbers() -> None:
    values = logsumexp(np.array([[-np.inf, -np.inf], [1e4, 1e4], [-1e4, -np.inf]]))
    assert values[0] == -np.inf
    assert values[1] == 1e4 + np.log(2.0)
    assert values[2] == -1e4


def test_sampled_columns_are_different_and_of_a_stated_stream() -> None:
    columns = sampled_columns(100_352, 1024)
    assert len(set(columns.tolist())) == 1024
    assert columns[:4].tolist() == [11, 150, 196, 269]
    assert sampled_columns(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_kl_divergence_of_near_and_far_distributions() -> None:
    expected = RANDOM.normal(size=(4, 30))
    log_p = expected - np.log(np.exp(expected).sum(axis=1, keepdims=True))
    for size in (1e-2, 1.0, 300.0):
        found = expected + size * RANDOM.normal(size=expected.shape)
        log_q = found - found.max(axis=1, keepdims=True)
        log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True))
        kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        np.testing.assert_allclose(
            kl_divergence(expected, found), kl, rtol=tolerances.KL_BY_DEFINITION
        )


def test_kl_divergence_of_tiny_differences_keeps_its_digits() -> None:
    """By the definition it would drown: it is half the variance of the difference, 1e-20."""
    expected = RANDOM.normal(size=(4, 30))
    difference = RANDOM.normal(size=expected.shape)
    p = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    mean = (p * difference).sum(axis=1, keepdims=True)
    variance = (p * (difference - mean) ** 2).sum(axis=1)
    found = kl_divergence(expected, expected + 1e-6 * difference)
    np.testing.assert_allclose(found, variance / 2 * 1e-12, rtol=tolerances.KL_BY_VARIANCE)


def test_kl_divergence_of_what_one_side_rules_out() -> None:
    """Minus infinity is a probability of 0: no matter in the reference, fatal in the other."""
    p, q = np.array([[0.0, 0.0, -np.inf]]), np.array([[0.0, 0.0, 0.0]])
    np.testing.assert_allclose(kl_divergence(p, q), np.log(1.5), rtol=tolerances.KL_BY_DEFINITION)
    np.testing.assert_array_equal(kl_divergence(p, p), 0)
    np.testing.assert_array_equal(kl_divergence(q, p), np.inf)


def test_kl_divergence_of_opposites_is_their_distance() -> None:
    """Beyond 745 the exponentials of one side are all 0 where the other's count."""
    p, q = np.array([[0.0, -800.0]]), np.array([[0.0, 800.0]])
    np.testing.assert_allclose(kl_divergence(p, q), 800.0, rtol=tolerances.KL_BY_DEFINITION)
