"""Denormals are kept when the caller has set flush-to-zero, and its mode is handed back."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from laguna_ref.checkpoint import DenseWeight
from laguna_ref.engines import numba_engine
from laguna_ref.kv_cache import KVFormat, KVSlice
from laguna_ref.numerics import BF16, FLOAT32
from numba_kernels import float_mode, rows
from tests.numba_kernels.drawn import activations, expert, generator

FLUSHING = 0x9FC0
"""Flush to zero (results) and denormals are zero (operands), all exceptions masked."""

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="sets an x86 control register"
)


@pytest.fixture
def flushing() -> Iterator[None]:
    before = float_mode.enter()
    float_mode.leave(np.int32(FLUSHING))
    try:
        yield
    finally:
        float_mode.leave(np.int32(before))


def flushes() -> bool:
    tiny = np.array([2.0**-130, 1e-40], np.float32)
    return not (tiny * np.float32(1)).any()


def tiny(*shape: int, exponent: int = -135) -> Any:
    """Numbers of which most are subnormal."""
    return np.ldexp(generator(*shape).normal(size=shape), exponent).astype(np.float32)


def linear(tokens: int) -> Any:
    w = DenseWeight("w", tiny(24, 16).astype(BF16))
    return numba_engine.linear(activations(FLOAT32, tokens, 16), w, FLOAT32)


def attention() -> Any:
    q = activations(FLOAT32, 5, 2, 8) * np.float32(40)  # probabilities become subnormal
    keys, values = activations(FLOAT32, 40, 1, 8), tiny(40, 1, 8, exponent=-127)
    kv = KVSlice(keys, values, 0, KVFormat(False, np.float32(1), np.float32(1)))
    return numba_engine.attention(q, kv, None, FLOAT32)


def experts() -> Any:
    ids = np.array([[0, 1], [1, 2], [0, 2]])
    shares = tiny(3, 2, exponent=-127)
    all_experts = [expert("bf16", 16, 8, e) for e in range(3)]
    return numba_engine.experts(activations(FLOAT32, 3, 16), ids, shares, all_experts, FLOAT32)


def exponential() -> Any:
    x = np.linspace(-103, -85, 400).astype(np.float32)
    out = np.empty_like(x)
    rows.exp(x, out)
    return out


CASES: dict[str, Callable[[], Any]] = {
    "one token": lambda: linear(1),
    "tokens": lambda: linear(5),
    "attention": attention,
    "experts": experts,
    "norm": lambda: numba_engine.rms_norm(
        activations(FLOAT32, 3, 16), tiny(16), 1e-6, FLOAT32
    ),
    "exp": exponential,
    "mlp": lambda: numba_engine.mlp(
        tiny(3, 16, exponent=-66), expert("bf16", 16, 8), FLOAT32
    ),
    "gate": lambda: numba_engine.gate_values(
        np.linspace(-103, -85, 50, dtype=np.float32)[None], "softplus", FLOAT32
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_kernels_keep_denormals(name: str) -> None:
    expected = CASES[name]()
    smallest = np.finfo(np.float32).tiny
    assert ((expected != 0) & (np.abs(expected) < smallest)).any(), "the case has no denormals"
    before = float_mode.enter()
    float_mode.leave(np.int32(FLUSHING))
    try:
        assert flushes(), "the mode was not set"
        with numba_engine.computing(None):
            found = CASES[name]()
        assert flushes(), "the caller's mode was not restored"
    finally:
        float_mode.leave(np.int32(before))
    assert not flushes()
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))


def test_an_error_inside_restores_the_mode_and_the_threads(flushing: None) -> None:
    import numba

    before = numba.get_num_threads()

    def fails() -> None:
        with numba_engine.computing(1):
            assert not flushes()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert flushes()
    assert numba.get_num_threads() == before


def test_the_rounding_mode_of_the_caller_does_not_show() -> None:
    expected = linear(3)
    before = float_mode.enter()
    float_mode.leave(np.int32(float_mode.DEFAULT_MXCSR | 0x6000))  # towards zero
    try:
        with numba_engine.computing(None):
            found = linear(3)
    finally:
        float_mode.leave(np.int32(before))
    assert np.array_equal(found, expected)
