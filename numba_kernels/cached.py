"""Keys and values as the cache stores them: e4m3fn codes with a scale, or floats."""

from __future__ import annotations

from numba import types
from numba.extending import overload

from numba_kernels.rows import rounded
from numba_kernels.simd import (
    address,
    load,
    load_bf16,
    load_e4m3,
    splat,
    to_f32,
    to_f64,
)


def cached8(stored, place, scale, round_read, like):
    """Eight stored numbers as a vector of the type of ``like``: uint8 codes times ``scale``,
    uint16 bfloat16 patterns, or floats as they are."""
    raise NotImplementedError("only inside compiled code")


@overload(cached8)
def _cached8(stored, place, scale, round_read, like):
    wide = like.dtype == types.float64
    if stored.dtype == types.uint8 and wide:
        return lambda stored, place, scale, round_read, like: (
            to_f64(load_e4m3(address(stored) + place)) * splat(types.float64(scale))
        )
    if stored.dtype == types.uint8:
        return lambda stored, place, scale, round_read, like: rounded(
            load_e4m3(address(stored) + place) * splat(scale), round_read
        )
    if stored.dtype == types.uint16:
        if wide:
            return lambda stored, place, scale, round_read, like: to_f64(
                load_bf16(address(stored) + 2 * place)
            )
        return lambda stored, place, scale, round_read, like: load_bf16(address(stored) + 2 * place)
    if stored.dtype == like.dtype:
        return lambda stored, place, scale, round_read, like: load(stored, place)
    if wide:
        return lambda stored, place, scale, round_read, like: to_f64(load(stored, place))
    return lambda stored, place, scale, round_read, like: to_f32(load(stored, place))
