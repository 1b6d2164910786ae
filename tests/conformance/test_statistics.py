"""Statistics against their definitions."""

from __future__ import annotations

import numpy as np

from laguna_ref.conformance import statistics
from laguna_ref.ops import router
from tests import tolerances

RANDOM = np.random.default_rng(0)


def test_vectors() -> None:
    expected = RANDOM.normal(size=(5, 3, 4))
    found = expected + 1e-3 * RANDOM.normal(size=expected.shape)
    each = statistics.of_vectors(found, expected)
    for t in range(5):
        f, e = found[t].ravel(), expected[t].ravel()
        np.testing.assert_allclose(each["l2"][t], np.linalg.norm(f - e) / np.linalg.norm(e))
        np.testing.assert_allclose(each["greatest"][t], abs(f - e).max() / abs(e).max())
        cosine = f @ e / np.linalg.norm(f) / np.linalg.norm(e)
        np.testing.assert_allclose(
            each["angle"][t], np.sqrt(2 * (1 - cosine)), rtol=tolerances.ANGLE_BY_COSINE
        )


def test_a_scaled_vector_has_no_angle() -> None:
    expected = RANDOM.normal(size=(2, 9))
    each = statistics.of_vectors(2 * expected, expected)
    np.testing.assert_array_equal(each["angle"], 0)
    np.testing.assert_array_equal(each["l2"], 1)


def test_kl_divergence_of_near_and_far_distributions() -> None:
    expected = RANDOM.normal(size=(4, 30))
    log_p = expected - np.log(np.exp(expected).sum(axis=1, keepdims=True))
    for size in (1e-2, 1.0, 300.0):
        found = expected + size * RANDOM.normal(size=expected.shape)
        log_q = found - found.max(axis=1, keepdims=True)
        log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True))
        kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        np.testing.assert_allclose(
            statistics.kl_divergence(found, expected), kl, rtol=tolerances.KL_BY_DEFINITION
        )


def test_kl_divergence_of_tiny_differences_keeps_its_digits() -> None:
    """By the definition it would drown: it is half the variance of the difference, 1e-20."""
    expected = RANDOM.normal(size=(4, 30))
    difference = RANDOM.normal(size=expected.shape)
    p = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    mean = (p * difference).sum(axis=1, keepdims=True)
    variance = (p * (difference - mean) ** 2).sum(axis=1)
    found = statistics.kl_divergence(expected + 1e-6 * difference, expected)
    np.testing.assert_allclose(found, variance / 2 * 1e-12, rtol=tolerances.KL_BY_VARIANCE)


def test_top_tokens() -> None:
    expected = np.array([[4.0, 3.0, 1.0], [4.0, 3.0, 1.0]])
    found = np.array([[4.0, 3.0, 1.0], [2.0, 3.0, 2.5]])
    each = statistics.of_logits(found, expected)
    np.testing.assert_array_equal(each["top1"], [0, 1 / 4])
    np.testing.assert_array_equal(each["overtaken"], [0, 3 / 4])
    np.testing.assert_array_equal(statistics.ranks(found, expected), [0, 2])


def test_deficits_and_margins() -> None:
    scores = np.array([[0.9, 0.5, 0.4, 0.1]] * 3)
    ids = np.array([[1, 0], [0, 2], [3, 1]])
    np.testing.assert_allclose(statistics.deficits(scores, ids), [0, 0.1, 0.8])
    np.testing.assert_allclose(router.margins(scores, 2), 0.1)
    assert np.isinf(router.margins(scores, 4)).all()
