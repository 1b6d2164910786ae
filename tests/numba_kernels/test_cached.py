"""Cached codes and floats as kernels read them: all codes, all scales, both ways to decode."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numba import njit

from numba_kernels import cached, fp8, target
from numba_kernels.cached import Head

CODES = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
WIDTH = 256
SCALES = [1.0, 0.013, 1 / 3, 448.0, 2.0**-149, 3e-45, 1.5e-39, 2.0**-126, 1e-36,
          fp8.LARGEST_SCALE, float(np.nextafter(np.float32(2.0**119), np.float32(np.inf))),
          2.0**121 * 1.1, float(np.finfo(np.float32).max)]  # fmt: skip


@njit
def read(head: Any, first: int, last: int, width: int, out: Any) -> None:
    cached.decode_rows(head, first, last, width, out)


@njit
def read_as_integers(head: Any, count: int, out: Any) -> None:
    cached.decode_any(head, 0, count, out, 0)


def rows_of_codes(step: int) -> Any:
    """Three rows of all codes, each in another order, ``step`` numbers apart."""
    memory = np.full(3 * step, 0x7F, np.uint8)
    for row in range(3):
        memory[row * step : row * step + WIDTH] = np.resize(np.roll(CODES, 5 * row), WIDTH)
    return memory


def expected(memory: Any, step: int, scale: Any, dtype: Any) -> Any:
    codes = np.stack([memory[row * step : row * step + WIDTH] for row in range(3)])
    with np.errstate(over="ignore", under="ignore"):
        return codes.view(ml_dtypes.float8_e4m3fn).astype(dtype) * dtype(scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [WIDTH, WIDTH + 24])
@pytest.mark.parametrize("scale", SCALES)
def test_all_codes_times_any_scale(scale: float, step: int, dtype: Any) -> None:
    memory = rows_of_codes(step)
    out = np.empty((3, WIDTH), dtype)
    head = Head(memory, -10 * step, step, np.float32(scale), False)  # its first position is 10
    read(head, 10, 13, WIDTH, out.reshape(-1))
    assert out.tobytes() == expected(memory, step, np.float32(scale), dtype).tobytes()


@pytest.mark.parametrize("scale", SCALES)
def test_in_bfloat16_each_number_is_rounded(scale: float) -> None:
    memory, out = rows_of_codes(WIDTH), np.empty((3, WIDTH), np.float32)
    read(Head(memory, 0, WIDTH, np.float32(scale), True), 0, 3, WIDTH, out.reshape(-1))
    exact = expected(memory, WIDTH, np.float32(scale), np.float32)
    assert np.array_equal(out, exact.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("count", [8, 24, 32, 40, 256])
def test_both_ways_to_decode_give_the_same_bits(count: int) -> None:
    """Whichever the processor takes, and a row of any length."""
    memory = rows_of_codes(WIDTH)
    head = Head(memory, 0, WIDTH, np.float32(0.0137), False)
    by_halves, by_integers = np.zeros((2, 256 + 8), np.float32)
    read(head, 0, 1, count, by_halves)
    read_as_integers(head, count, by_integers)
    assert by_halves.tobytes() == by_integers.tobytes()


def test_the_target_is_asked() -> None:
    assert isinstance(target.converts_halves(), bool)
    assert target.converts_halves() or not target.wide_registers()
