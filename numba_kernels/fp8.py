"""e4m3fn codes through float16, where the processor widens float16 in one instruction.

A code's exponent and mantissa, moved to those of a float16, are its value times 2**-8, exactly
and for subnormal codes too. Multiplied by ``scale * 256`` that gives the value times ``scale``,
rounded once: the bits of the integer way in ``simd.load_e4m3``, for a third of the work.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_kernels.simd import splat_lanes

LARGEST_SCALE = 2.0**119
"""Times 256 this is still finite; greater scales go the integer way."""


@lru_cache
def decode(lanes: int) -> Any:
    """An intrinsic ``(place, scale256, out, at)``: ``lanes`` codes at an address, as numbers of
    ``out``, to ``out[at:]``. NaN codes are not expected: the cache never holds one."""

    @intrinsic
    def kernel(typing, place, scale256, out, at):
        def vector(element: ir.Type) -> ir.VectorType:
            return ir.VectorType(element, lanes)

        word = vector(ir.IntType(16))

        def codegen(context, builder, sig, args):
            def every(value: int) -> ir.Constant:
                return ir.Constant(word, [value] * lanes)

            place, factor, array, at = args
            data = context.make_array(sig.args[2])(context, builder, array).data
            pointer = builder.inttoptr(place, vector(ir.IntType(8)).as_pointer())
            codes = builder.load(pointer)
            codes.align = 1
            # sign, then a zero for the exponent's fifth bit, four of exponent, three of mantissa
            moved = builder.shl(builder.sext(codes, word), every(7))
            halves = builder.bitcast(builder.and_(moved, every(-0x4001)), vector(ir.HalfType()))
            numbers = vector(factor.type)
            found = builder.fmul(
                builder.fpext(halves, numbers), splat_lanes(builder, factor, numbers)
            )
            target = builder.bitcast(builder.gep(data, [at]), numbers.as_pointer())
            builder.store(found, target).align = 4
            return context.get_dummy_value()

        return types.void(types.int64, out.dtype, out, types.intp), codegen

    return kernel
