"""Keys and values as the cache stores them: e4m3fn codes with a scale, or floats."""

from __future__ import annotations

from collections import namedtuple

from numba import njit, types
from numba.extending import overload

from numba_kernels import fp8, target
from numba_kernels.rows import rounded
from numba_kernels.simd import (
    address,
    load,
    load_bf16,
    load_e4m3,
    splat,
    store,
    to_f32,
    to_f64,
)

Head = namedtuple("Head", "memory origin step scale round_read")
"""Keys or values of one head: position p is the row of ``memory`` from ``origin + p * step``."""

_decode8, _decode32 = fp8.decode(8), fp8.decode(32)


@njit(inline="always")
def decode_rows(head, first, last, width, out):
    """Positions ``first`` to ``last`` as rows of ``width`` numbers."""
    if head.step == width:
        decode(head, head.origin + first * width, (last - first) * width, out, 0)
    else:
        for p in range(first, last):
            decode(head, head.origin + p * head.step, width, out, (p - first) * width)


@njit(inline="always")
def place_of(head, position):
    """The address of a position's row."""
    return address(head.memory) + (head.origin + position * head.step) * head.memory.itemsize


@njit(inline="always")
def row_bytes(head):
    """Bytes from one position's row to the next one's."""
    return head.step * head.memory.itemsize


def decode(head, place, count, out, at):
    """``count`` stored numbers from ``place`` on, to ``out[at:]``."""
    raise NotImplementedError("only inside compiled code")


@overload(decode, inline="always")
def _decode(head, place, count, out, at):
    codes = head.types[0].dtype == types.uint8
    return _decode_codes if codes and target.converts_halves() else _decode_any


def _decode_any(head, place, count, out, at):
    for k in range(0, count, 8):
        v = cached8(head.memory, place + k, head.scale, head.round_read, out)
        store(out, at + k, v)


def _decode_codes(head, place, count, out, at):
    if not head.scale <= fp8.LARGEST_SCALE:
        decode_any(head, place, count, out, at)
        return
    source = address(head.memory) + place
    scale256 = out.dtype.type(head.scale) * out.dtype.type(256)
    many = count // 32 * 32
    for k in range(0, many, 32):
        _decode32(source + k, scale256, out, at + k)
    for k in range(many, count, 8):
        _decode8(source + k, scale256, out, at + k)
    if head.round_read:
        for k in range(at, at + count, 8):
            store(out, k, rounded(load(out, k), True))


decode_any = njit(_decode_any)


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
