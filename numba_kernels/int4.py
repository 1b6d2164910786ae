"""INT4 codes by table, where a register holds sixteen numbers: one lookup a weight.

The sixteen values that a group's codes can have are worked out once, scale and rounding included,
so the bits are those of ``simd.load_int4`` times the scale, for half of the work. A lane's upper
bits do not matter to the lookup: codes are only shifted into place, never masked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_kernels.simd import f32x16, i32x16, load_vector, splat_lanes

OFFSET = 8
_HIGH = ir.Constant(ir.VectorType(ir.IntType(1), 16), [lane // 8 for lane in range(16)])


def _in_place(builder: Any, first: Any, second: Any) -> Any:
    """The codes of one word in the low eight lanes, of another in the high ones."""
    words = builder.select(
        _HIGH, splat_lanes(builder, second, i32x16.llvm), splat_lanes(builder, first, i32x16.llvm)
    )
    shifts = ir.Constant(i32x16.llvm, [4 * (lane % 8) for lane in range(16)])
    return builder.lshr(words, shifts)


@intrinsic
def values(typing):
    """What the codes 0 to 15 stand for: -8 to 7, as f32x16."""
    numbers = [float(code - OFFSET) for code in range(16)]
    return f32x16(), lambda c, builder, sig, args: ir.Constant(f32x16.llvm, numbers)


@intrinsic
def scaled(typing, table, scale):
    """A table times a float32."""
    return f32x16(table, types.float32), lambda c, builder, sig, args: builder.fmul(
        args[0], splat_lanes(builder, args[1], f32x16.llvm)
    )


@intrinsic
def codes(typing, first, second):
    """Eight codes at each of two addresses, in the lanes' lowest bits."""

    def codegen(context, builder, sig, args):
        return _in_place(builder, *(load_vector(builder, place, ir.IntType(32)) for place in args))

    return i32x16(types.int64, types.int64), codegen


@intrinsic
def look_up(typing, table, codes):
    """``table[codes & 15]``, lane by lane (x86 with AVX-512)."""

    def codegen(context, builder, sig, args):
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(f32x16.llvm, [f32x16.llvm, i32x16.llvm]),
            "llvm.x86.avx512.permvar.sf.512",
        )
        return builder.call(function, args)

    return f32x16(table, codes), codegen
