"""RMS norm, the gate, the SwiGLU block: against the plain ones, and as they are defined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.engines import numba_engine
from laguna_ref.numerics import BF16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops import gate as plain_gate
from laguna_ref.ops import mlp as plain_mlp
from laguna_ref.ops import norm as plain_norm
from tests import tolerances
from tests.numba_kernels import definition
from tests.numba_kernels.drawn import ALL_NUMERICS, FORMATS, activations, expert, generator

NUMERICS = pytest.mark.parametrize("numerics", ALL_NUMERICS.values(), ids=lambda n: n.name)


def norm_weight(width: int, stored: Any = BF16) -> Any:
    return np.exp(generator(width).normal(0, 0.3, width)).astype(stored)


@NUMERICS
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 70), st.integers(1, 70)),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 130)),
    ),
    eps=st.sampled_from([1e-6, 0.1, 0.0]),
    stored=st.sampled_from([BF16, np.dtype(np.float32), np.dtype(np.float16)]),
    scale=st.integers(-30, 30),
)
def test_rms_norm(
    numerics: Numerics, shape: tuple[int, ...], eps: float, stored: Any, scale: int
) -> None:
    x = np.ldexp(activations(numerics, *shape), scale)
    weight = norm_weight(shape[-1], stored)
    found = numba_engine.rms_norm(x, weight, eps, numerics)
    expected = plain_norm.rms_norm(x, weight, eps, numerics)
    assert found.shape == x.shape
    assert found.dtype == numerics.dtype
    # A mean square and its root: half the relative error of the two sums; eps, root, quotient,
    # product and weight in both.
    error = tolerances.fixed_order_dot(shape[-1], numerics.dtype) + 2 * tolerances.roundings(
        6, numerics.dtype
    )
    if numerics.rounds:  # a turned rounding at each of two points
        error += tolerances.roundings(4, BF16)
    assert (np.abs(found - expected) <= error * np.abs(expected)).all()


@pytest.mark.parametrize("numerics", [FLOAT64, FLOAT32], ids=lambda n: n.name)
@pytest.mark.parametrize("width", [1, 8, 13, 40])
def test_rms_norm_is_as_defined(numerics: Numerics, width: int) -> None:
    x, weight = activations(numerics, 3, width), norm_weight(width)
    number = numerics.dtype.type
    for row, found in zip(x, numba_engine.rms_norm(x, weight, 1e-6, numerics), strict=True):
        mean = definition.dot(row, row, numerics.dtype) / number(width)
        inverse = number(1) / np.sqrt(mean + number(1e-6))
        assert np.array_equal(found, weight.astype(numerics.dtype) * (row * inverse))


def test_rms_norm_of_zeros_and_of_what_overflows() -> None:
    ones = np.ones(11, np.float32)
    zeros = numba_engine.rms_norm(np.zeros((2, 11), np.float32), ones, 1e-6, FLOAT32)
    assert not zeros.any()
    great = np.full((2, 11), 1e30, np.float32)  # squares are infinite, their root's inverse zero
    assert not numba_engine.rms_norm(great, ones, 1e-6, FLOAT32).any()
    small = np.full((2, 11), 1e-30, np.float32)  # squares are zero
    with np.errstate(divide="ignore"):
        expected = plain_norm.rms_norm(small, ones, 0.0, FLOAT32)
    assert np.array_equal(numba_engine.rms_norm(small, ones, 0.0, FLOAT32), expected)


@NUMERICS
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    activation=st.sampled_from(["softplus", "sigmoid"]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
)
def test_gate_values(
    numerics: Numerics, shape: tuple[int, int], activation: str, scale: float
) -> None:
    logits = numerics.round_at("linear", scale * activations(numerics, *shape))
    logits = numerics.cast(logits)
    found = numba_engine.gate_values(logits, activation, numerics)
    expected = plain_gate.gate_values(logits, activation, numerics)
    error = tolerances.two_activations(activation, numerics.dtype)
    if numerics.rounds:
        error += tolerances.roundings(2, BF16)
    assert found.shape == shape
    # Below the normal numbers an ulp is no longer relative.
    scale = np.maximum(np.abs(expected), np.finfo(numerics.dtype).tiny)
    assert (np.abs(found - expected) <= error * scale).all()


def mlp_error(hidden: int, width: int, numerics: Numerics) -> float:
    """Of two runs, of the scale of the values that the last product sums.

    Two products of ``hidden`` terms, the activation and its product, one of ``width``; the
    activation's slope is at most 1.1. Sums of random signs are up to some roots of their
    length smaller than the sum of their magnitudes.
    """
    terms = 2.2 * tolerances.fixed_order_dot(hidden, numerics.dtype) * hidden**0.5
    terms += tolerances.fixed_order_dot(width, numerics.dtype) + tolerances.roundings(
        16, numerics.dtype
    )
    if numerics.rounds:  # turned roundings: two of linear, activation, product, linear
        terms += tolerances.roundings(2 * 5, BF16)
    return terms * width**0.5


@NUMERICS
@pytest.mark.parametrize("stored", FORMATS)
@given(
    tokens=st.sampled_from([1, 2, 5]),
    hidden=st.sampled_from([4, 8, 12, 24, 64]),
    width=st.sampled_from([4, 8, 20, 64]),
    seed=st.integers(0, 99),
)
def test_mlp(
    numerics: Numerics, stored: str, tokens: int, hidden: int, width: int, seed: int
) -> None:
    weights = expert(stored, hidden, width, seed, group=4)
    x = activations(numerics, tokens, hidden, seed=seed)
    found = numba_engine.mlp(x, weights, numerics)
    expected = plain_mlp.mlp(x, weights, numerics)
    assert found.dtype == numerics.dtype
    error = mlp_error(hidden, width, numerics)
    tolerances.assert_within(found, expected, error, unit=tolerances.UNIT)
