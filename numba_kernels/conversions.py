"""Vectors of one type made into vectors of another. Of ``simd``, which says what a vector is."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_kernels.vectors import (
    constant,
    f32x8,
    f32x16,
    f64x8,
    f64x16,
    i32x8,
    i32x16,
    i64x8,
    i64x16,
    splat_lanes,
)

_BITS = {f32x8: i32x8, f64x8: i64x8, f32x16: i32x16, f64x16: i64x16}
_FROM_BITS = {bits: floats for floats, bits in _BITS.items()}


@intrinsic
def bits(typing, v):
    """The same bits as integers."""
    target = _BITS[v]
    return target(v), lambda c, builder, sig, args: builder.bitcast(args[0], target.llvm)


@intrinsic
def floats(typing, v):
    """The same bits as floating-point numbers."""
    target = _FROM_BITS[v]
    return target(v), lambda c, builder, sig, args: builder.bitcast(args[0], target.llvm)


@intrinsic
def to_f32(typing, v):
    """i32x8 (exact below 2**24) or f64x8 (nearest even) -> f32x8."""
    if v == i32x8:
        return f32x8(v), lambda c, builder, sig, args: builder.sitofp(args[0], f32x8.llvm)
    return f32x8(v), lambda c, builder, sig, args: builder.fptrunc(args[0], f32x8.llvm)


@intrinsic
def to_f64(typing, v):
    """f32x8 -> f64x8, f32x16 -> f64x16, exact."""
    wide = {f32x8: f64x8, f32x16: f64x16}[v]
    return wide(v), lambda c, builder, sig, args: builder.fpext(args[0], wide.llvm)


@intrinsic
def int_splat(typing, like, value):
    """An integer in every lane of an integer vector like ``like``."""

    def codegen(context, builder, sig, args):
        wide = args[1]
        number = wide if like.element.width == 64 else builder.trunc(wide, like.element)
        return splat_lanes(builder, number, like.llvm)

    return like(like, types.int64), codegen


@intrinsic
def number(typing, like, value):
    """A float64 constant in every lane of a vector like ``like``."""

    def codegen(context, builder, sig, args):
        value = args[1]
        if like.scalar == types.float32:
            value = builder.fptrunc(value, ir.FloatType())
        return splat_lanes(builder, value, like.llvm)

    return like(like, types.float64), codegen


@intrinsic
def round_bf16(typing, v):
    """The nearest bfloat16, ties to even, as float32; a NaN stays a NaN."""
    if v not in (f32x8, f32x16):
        return None

    def codegen(context, builder, sig, args):
        integer = v.bits
        raw = builder.bitcast(args[0], integer)
        odd = builder.and_(builder.lshr(raw, constant(integer, 16)), constant(integer, 1))
        up = builder.add(raw, builder.add(odd, constant(integer, 0x7FFF)))
        rounded = builder.and_(up, constant(integer, 0xFFFF0000 - (1 << 32)))
        ordered = builder.fcmp_ordered("ord", args[0], args[0])
        return builder.select(ordered, builder.bitcast(rounded, v.llvm), args[0])

    return v(v), codegen
