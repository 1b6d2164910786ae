"""The next token's distribution, against Transformers' definition of its warpers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from laguna_ref.errors import InputError
from laguna_ref.sampling import Sampling, probabilities, sample
from tests import naive, tolerances


def warped(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper in turn, as they read.

    Top-k removes what is below the k-th greatest score; top-p sorts upwards and removes the
    tokens whose running sum is at most 1 - top_p, but never the last.
    """
    scores = [z / temperature for z in logits]
    if top_k:
        threshold = sorted(scores)[-min(top_k, len(scores))]
        scores = [-math.inf if s < threshold else s for s in scores]
    if top_p < 1:
        ascending = sorted(range(len(scores)), key=lambda i: scores[i])
        p, running = naive.softmax(scores), 0.0
        removed = []
        for i in ascending[:-1]:
            running += p[i]
            if running <= 1 - top_p:
                removed.append(i)
        for i in removed:
            scores[i] = -math.inf
    return naive.softmax(scores)


distinct = st.lists(
    st.integers(-80, 80), min_size=1, max_size=12, unique=True
).map(lambda zs: [z / 8 for z in zs])  # fmt: skip


@given(
    distinct,
    st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    st.integers(0, 15),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
)
def test_the_distribution_is_transformers_own(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    expected = warped(logits, temperature, top_k, top_p)
    error = tolerances.roundings(8 * len(logits) + 16, np.float64)
    kept = np.cumsum(sorted(warped(logits, temperature, top_k, 1.0), reverse=True))
    assume(np.abs(kept - top_p).min() > error)
    found = probabilities(np.array(logits), Sampling(temperature, top_k, top_p))
    assert found.dtype == np.float64
    # A score of up to 100 is rounded before its exponential.
    tolerances.assert_within(found, expected, error + tolerances.roundings(200, np.float64))


def test_zero_temperature_is_greedy_and_ties_go_to_the_lower_index() -> None:
    found = probabilities(np.array([1.0, 3.0, 3.0, 2.0]), Sampling())
    assert found.tolist() == [0, 1, 0, 0]


def test_top_k_keeps_the_lower_of_equal_logits() -> None:
    found = probabilities(np.array([1.0, 1.0, 1.0, 0.0]), Sampling(1.0, top_k=2))
    assert found.tolist() == [0.5, 0.5, 0, 0]


def test_top_p_keeps_at_least_one() -> None:
    found = probabilities(np.array([0.0, 5.0, 0.0]), Sampling(1.0, top_p=1e-9))
    assert found.tolist() == [0, 1, 0]


def test_top_p_counts_the_token_that_reaches_it() -> None:
    logits = np.log([0.5, 0.25, 0.125, 0.125])
    kept = [
        np.count_nonzero(probabilities(logits, Sampling(1.0, top_p=p))) for p in (0.49, 0.51, 0.76)
    ]
    assert kept == [1, 2, 3]


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e30])
def test_extreme_temperatures(temperature: float) -> None:
    found = probabilities(np.array([1.0, 2.0, -3.0]), Sampling(temperature))
    expected = [0, 1, 0] if temperature < 1 else [1 / 3] * 3
    tolerances.assert_within(found, expected, tolerances.roundings(8, np.float64))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_either_type(dtype: Any) -> None:
    logits = np.array([0.5, 1.5], dtype=dtype)
    expected = naive.softmax([0.5, 1.5])
    found = probabilities(logits, Sampling(1.0))
    tolerances.assert_within(found, expected, tolerances.roundings(8, np.float64))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Sampling(**options)


@given(distinct, st.integers(0, 2**32))
def test_an_equal_seed_gives_the_same_token(logits: list[float], seed: int) -> None:
    sampling = Sampling(1.0, top_k=3, top_p=0.9)
    tokens = {sample(np.array(logits), sampling, np.random.default_rng(seed)) for _ in range(2)}
    assert len(tokens) == 1
    assert probabilities(np.array(logits), sampling)[tokens.pop()] > 0


def test_tokens_are_drawn_with_their_probabilities() -> None:
    """Counts of 20,000 draws, each within five standard deviations (one in 2 million)."""
    logits, draws = np.array([0.0, 1.0, 2.0, -1.0]), 20_000
    expected = probabilities(logits, Sampling(1.0))
    random = np.random.default_rng(0)
    tokens = [sample(logits, Sampling(1.0), random) for _ in range(draws)]
    counts = np.bincount(tokens, minlength=4)
    deviation = np.sqrt(draws * expected * (1 - expected))
    off = np.abs(counts - draws * expected) / deviation
    assert (off < tolerances.STANDARD_DEVIATIONS).all(), off
