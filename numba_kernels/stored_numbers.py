"""Numbers of a checkpoint or a cache, widened as they are read: bfloat16, INT4, INT8, e4m3fn.

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
    i32x8,
    load_vector,
    pointer_to,
    shuffle,
)


def _loader(floats: Vector, doc: str, codegen: Any) -> Any:
    """An intrinsic ``(place) -> floats`` from ``codegen(builder, place, floats)``."""

    def load_from(typing, place):
        def emit(context, builder, sig, args):
            return codegen(builder, args[0], floats)

        return floats(types.int64), emit

    load_from.__doc__ = doc
    return intrinsic(load_from)


def _bf16(builder: Any, place: Any, floats: Vector) -> Any:
    raw = load_vector(builder, place, ir.VectorType(ir.IntType(16), floats.lanes))
    wide = builder.shl(builder.zext(raw, floats.bits), constant(floats.bits, 16))
    return builder.bitcast(wide, floats.llvm)


def _int4(builder: Any, place: Any, floats: Vector) -> Any:
    integer, words = floats.bits, floats.lanes // 8
    loaded = load_vector(builder, place, ir.VectorType(ir.IntType(32), words))
    each = shuffle(builder, loaded, loaded, [lane // 8 for lane in range(floats.lanes)])
    shifts = ir.Constant(integer, [4 * (lane % 8) for lane in range(floats.lanes)])
    codes = builder.and_(builder.lshr(each, shifts), constant(integer, 15))
    return builder.sitofp(builder.sub(codes, constant(integer, 8)), floats.llvm)


def _int8(builder: Any, place: Any, floats: Vector) -> Any:
    raw = load_vector(builder, place, ir.VectorType(ir.IntType(8), floats.lanes))
    codes = builder.sub(builder.zext(raw, floats.bits), constant(floats.bits, 128))
    return builder.sitofp(codes, floats.llvm)


load_bf16 = _loader(f32x8, "Eight bfloat16 at an address, widened.", _bf16)
load_int4 = _loader(
    f32x8,
    "The eight INT4 codes of a 32-bit word, lowest nibble first, minus their offset 8.",
    _int4,
)
load_int8 = _loader(
    f32x8, "Eight INT8 codes stored as bytes ``code + 128``, minus that offset.", _int8
)
load_bf16x16 = _loader(f32x16, "Sixteen bfloat16, widened.", _bf16)
load_int4x16 = _loader(f32x16, "The sixteen INT4 codes of two words, minus their offset.", _int4)
load_int8x16 = _loader(f32x16, "Sixteen INT8 codes, minus their offset.", _int8)


@intrinsic
def load_e4m3(typing, place):
    """Eight e4m3fn codes as numbers (NaN codes are not expected: the cache never holds one).

    Exponent and mantissa move into place with the bias corrected; a subnormal code is its
    mantissa times 2**-9. Integer work only, so flushed denormals cannot show.
    """

    def codegen(context, builder, sig, args):
        integer = i32x8.llvm
        raw = builder.zext(load_vector(builder, args[0], ir.VectorType(ir.IntType(8), 8)), integer)
        magnitude = builder.and_(raw, constant(integer, 0x7F))
        normal = builder.add(
            builder.shl(magnitude, constant(integer, 20)), constant(integer, 120 << 23)
        )
        tiny = builder.fmul(builder.sitofp(magnitude, f32x8.llvm), constant(f32x8.llvm, 2.0**-9))
        is_tiny = builder.icmp_signed("<", magnitude, constant(integer, 8))
        value = builder.select(is_tiny, builder.bitcast(tiny, integer), normal)
        sign = builder.shl(builder.and_(raw, constant(integer, 0x80)), constant(integer, 24))
        return builder.bitcast(builder.or_(value, sign), f32x8.llvm)

    return f32x8(types.int64), codegen


@intrinsic
def scalar_bf16(typing, place):
    """One bfloat16 at an address."""

    def codegen(context, builder, sig, args):
        raw = builder.load(pointer_to(builder, args[0], ir.IntType(16)))
        raw.align = 1
        wide = builder.shl(builder.zext(raw, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.int64), codegen
