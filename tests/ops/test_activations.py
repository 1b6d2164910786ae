"""silu, softplus, sigmoid and softmax at the ends of their ranges, without a warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from laguna_ref.ops import activations
from tests import naive, tolerances

TYPES = [np.float32, np.float64]
Function = Callable[[Any], Any]

FUNCTIONS = [
    pytest.param(activations.sigmoid, naive.sigmoid, id="sigmoid"),
    pytest.param(activations.silu, naive.silu, id="silu"),
    pytest.param(activations.softplus, naive.softplus, id="softplus"),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("ours", "theirs"), FUNCTIONS)
def test_against_the_scalar_formula(ours: Function, theirs: Function, dtype: Any) -> None:
    x = np.linspace(-60, 60, 1201).astype(dtype)
    expected = np.array([theirs(float(v)) for v in x])
    found = ours(x)
    assert found.dtype == dtype
    # An exponential (1 ulp), sum, quotient or log1p (1 ulp), product: 8 roundings a side.
    error = np.abs(found - expected) / np.maximum(np.abs(expected), np.finfo(dtype).tiny)
    allowed = tolerances.roundings(16, dtype)
    assert error.max() <= allowed, f"at x = {x[error.argmax()]}: {error.max():.2e}"


@pytest.mark.parametrize("dtype", TYPES)
def test_the_ends(dtype: Any) -> None:
    top = np.finfo(dtype).max
    x = np.array([-np.inf, -top, -1e4, 0, 1e4, top, np.inf], dtype=dtype)
    assert activations.sigmoid(x).tolist() == [0, 0, 0, 0.5, 1, 1, 1]
    assert activations.softplus(x)[:3].tolist() == [0, 0, 0]
    assert activations.softplus(x)[4:].tolist() == x[4:].tolist()
    assert activations.silu(x[1:-1]).tolist() == [0, 0, 0, x[4], top]


def test_softplus_is_the_identity_where_pytorch_switches_to_it() -> None:
    """PyTorch returns x above 20; in float32 log1p(exp(-20)) is below half an ulp there."""
    x = np.linspace(20, 100, 1000, dtype=np.float32)
    assert np.array_equal(activations.softplus(x), x)


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=2, max_side=9), elements=finite))
def test_softmax_is_a_distribution(x: Any) -> None:
    p = activations.softmax(x)
    assert (p >= 0).all()
    error = np.abs(p.astype(np.float64).sum(axis=-1) - 1).max()
    assert error <= tolerances.roundings(2 * x.shape[-1] + 2, np.float32)


def test_softmax_gives_exactly_zero_where_masked() -> None:
    p = activations.softmax(np.array([[-np.inf, 3.0, -np.inf]]))
    assert p.tolist() == [[0.0, 1.0, 0.0]]
