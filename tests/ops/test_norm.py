"""RMSNorm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from laguna_ref.numerics import BFLOAT16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops.norm import rms_norm
from tests import naive, tolerances
from tests.small import BF16


def vectors(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("numerics", [FLOAT64, FLOAT32], ids=lambda n: n.name)
@pytest.mark.parametrize("eps", [1e-6, 0.1, 0.0])
def test_against_the_naive_one(numerics: Numerics, eps: float) -> None:
    x, weight = numerics.cast(vectors((5, 3, 16))), numerics.cast(vectors((16,)))
    found = rms_norm(x, weight, eps, numerics)
    assert found.dtype == numerics.dtype
    expected = [[naive.rms_norm(h.tolist(), weight.tolist(), eps) for h in t] for t in x]
    # 16 squares summed, mean, eps, root, reciprocal and two products.
    tolerances.assert_within(found, expected, tolerances.roundings(16 + 6, numerics.dtype))


def test_the_weight_is_plain_not_one_plus_weight() -> None:
    x = vectors((2, 8))
    assert not rms_norm(x, np.zeros(8), 1e-6, FLOAT64).any()


@pytest.mark.parametrize("power", [-20, 1, 20])
def test_the_scale_of_the_input_does_not_matter_without_eps(power: int) -> None:
    x, weight = vectors((3, 8)), vectors((8,))
    scaled = rms_norm(np.ldexp(x, 2 * power), weight, 0.0, FLOAT64)
    assert np.array_equal(scaled, rms_norm(x, weight, 0.0, FLOAT64))


def test_zeros_stay_zeros() -> None:
    assert not rms_norm(np.zeros((1, 4)), np.ones(4), 1e-6, FLOAT64).any()


def test_bfloat16_rounds_before_and_after_the_weight() -> None:
    x = vectors((4, 16)).astype(BF16).astype(np.float32)
    weight = vectors((16,)).astype(BF16)
    exact = rms_norm(x, np.ones(16, np.float32), 1e-6, FLOAT32)
    by_hand = (weight.astype(np.float32) * exact.astype(BF16).astype(np.float32)).astype(BF16)
    assert np.array_equal(rms_norm(x, weight, 1e-6, BFLOAT16), by_hand.astype(np.float32))
