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
