"""Vectors made of numbers and of other vectors, and taken apart again.

Of ``simd``, which says what a vector is.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_kernels.vectors import (
    Vector,
    constant,
    f32x8,
    f32x16,
    f64x8,
    f64x16,
    i32x8,
    shuffle,
    splat_lanes,
)

_HALF = {f32x16: f32x8, f64x16: f64x8}
_DOUBLE = {half: whole for whole, half in _HALF.items()}


@intrinsic
def splat(typing, x):
    """A number in all eight lanes: float32 -> f32x8, float64 -> f64x8, int32 -> i32x8."""
    vector = {types.float32: f32x8, types.float64: f64x8, types.int32: i32x8}.get(x)
    if vector is None:
        return None
    return vector(x), lambda context, builder, sig, args: splat_lanes(builder, args[0], vector.llvm)


@intrinsic
def zeros(typing, like):
    """Zeros of the type of a vector, or of the lanes of a number's type."""
    vector = {types.float32: f32x8, types.float64: f64x8}.get(like, like)
    return vector(like), lambda c, builder, sig, args: constant(vector.llvm, 0.0)


@intrinsic
def both(typing, v):
    """Two copies side by side."""
    whole = _DOUBLE[v]
    lanes = [*range(8), *range(8)]
    return whole(v), lambda c, builder, sig, args: shuffle(builder, args[0], args[0], lanes)


@intrinsic
def pair(typing, a, b):
    """``a`` and ``b`` side by side."""
    whole = _DOUBLE[a]
    lanes = list(range(16))
    return whole(a, b), lambda c, builder, sig, args: shuffle(builder, args[0], args[1], lanes)


def _part(first: int) -> Any:
    def part(typing, v):
        half = _HALF[v]
        lanes = list(range(first, first + 8))
        return half(v), lambda c, builder, sig, args: shuffle(builder, args[0], args[0], lanes)

    return part


low_half, high_half = intrinsic(_part(0)), intrinsic(_part(8))
"""The first, or the last, eight lanes of sixteen."""


def _folding(v: Vector, join: Any) -> Any:
    """Code that joins both halves of a vector, and those of what comes out, to one number."""

    def codegen(context, builder, sig, args):
        (value,) = args
        width = v.lanes
        while width > 1:
            half = width // 2
            low = shuffle(builder, value, value, list(range(half)))
            high = shuffle(builder, value, value, list(range(half, width)))
            value, width = join(builder, low, high), half
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return codegen


@intrinsic
def total(typing, v):
    """The sum of the lanes by a fixed tree: halves added until one is left."""
    if v not in (f32x8, f64x8):
        return None
    return v.scalar(v), _folding(v, lambda builder, low, high: builder.fadd(low, high))


@intrinsic
def greatest(typing, v):
    """The greatest lane."""

    def greater(builder, low, high):
        return builder.select(builder.fcmp_ordered(">", low, high), low, high)

    return v.scalar(v), _folding(v, greater)


@intrinsic
def lane(typing, v, index):
    """One lane as a number."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], builder.trunc(args[1], ir.IntType(32)))

    return v.scalar(v, types.intp), codegen
