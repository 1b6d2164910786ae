"""Arithmetic on vectors, lane by lane: functions, and Python's operators.

Of ``simd``, which says what a vector is.
"""

from __future__ import annotations

import operator

from numba import types
from numba.extending import intrinsic, overload

from numba_kernels.vectors import (
    FLOATS,
    LANES,
    Vector,
    call_llvm,
    mask8,
    mask16,
    splat_lanes,
)


@intrinsic
def fma(typing, a, b, c):
    """``a * b + c``, rounded once."""
    if not (a == b == c and a in FLOATS):
        return None
    return a(a, b, c), lambda ctx, builder, sig, args: call_llvm(builder, "llvm.fma", a.llvm, args)


@intrinsic
def sqrt(typing, a):
    """Correctly rounded square root."""
    return a(a), lambda ctx, builder, sig, args: call_llvm(builder, "llvm.sqrt", a.llvm, args)


@intrinsic
def absolute(typing, a):
    """``|a|``."""
    return a(a), lambda ctx, builder, sig, args: call_llvm(builder, "llvm.fabs", a.llvm, args)


def _binary(operation, emit_float, emit_int):
    """Makes a Python operator work lane by lane on two vectors of one type."""

    @intrinsic
    def body(typing, a, b):
        def codegen(context, builder, sig, args):
            return getattr(builder, emit_float if a in FLOATS else emit_int)(*args)

        return a(a, b), codegen

    @overload(operation)
    def typed(a, b):
        if isinstance(a, Vector) and a == b and (emit_float if a in FLOATS else emit_int):
            return lambda a, b: body(a, b)
        return None


_binary(operator.add, "fadd", "add")
_binary(operator.sub, "fsub", "sub")
_binary(operator.mul, "fmul", "mul")
_binary(operator.truediv, "fdiv", None)
_binary(operator.and_, None, "and_")
_binary(operator.or_, None, "or_")


def _compare(operation, symbol):
    @intrinsic
    def body(typing, a, b):
        def codegen(context, builder, sig, args):
            if a in FLOATS:
                return builder.fcmp_ordered(symbol, *args)
            return builder.icmp_signed(symbol, *args)

        return (mask8 if a.lanes == LANES else mask16)(a, b), codegen

    @overload(operation)
    def typed(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: body(a, b)
        return None


_compare(operator.lt, "<")
_compare(operator.gt, ">")
_compare(operator.eq, "==")
_compare(operator.ge, ">=")


@intrinsic
def select(typing, mask, a, b):
    """``a`` where the mask is set, else ``b``."""
    return a(mask, a, b), lambda c, builder, sig, args: builder.select(*args)


@intrinsic
def maximum(typing, a, b):
    """The greater of two, lane by lane; ``b`` where they are equal."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, b), codegen


@intrinsic
def shift_left(typing, v, count):
    """Bits of every lane moved up by ``count``."""
    return v(v, types.intp), lambda c, builder, sig, args: builder.shl(
        args[0], splat_lanes(builder, builder.trunc(args[1], v.element), v.llvm)
    )


@intrinsic
def shift_right(typing, v, count):
    """Bits of every lane moved down by ``count``; zeros come in."""
    return v(v, types.intp), lambda c, builder, sig, args: builder.lshr(
        args[0], splat_lanes(builder, builder.trunc(args[1], v.element), v.llvm)
    )
