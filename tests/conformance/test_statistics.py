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
