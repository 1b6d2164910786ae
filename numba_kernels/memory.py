"""Vectors read from and written to memory: arrays, and addresses of a mapped file.

Of ``simd``, which says what a vector is. How numbers of few bits are read stands in
``stored_numbers``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_kernels.vectors import f32x8, f32x16, f64x8, load_vector, pointer_to


@intrinsic
def address(typing, array):
    """Where an array's data begins."""

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


@intrinsic
def load(typing, array, index):
    """Eight consecutive numbers of a float32 or float64 array, as f32x8 or f64x8."""
    vector = {types.float32: f32x8, types.float64: f64x8}.get(array.dtype)
    if vector is None:
        return None

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), vector.llvm.as_pointer())
        loaded = builder.load(pointer)
        loaded.align = 4
        return loaded

    return vector(array, types.intp), codegen


@intrinsic
def store(typing, array, index, v):
    """Eight numbers to consecutive places of an array."""

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), v.llvm.as_pointer())
        stored = builder.store(args[2], pointer)
        stored.align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, v), codegen


@intrinsic
def load_f32(typing, place):
    """Eight float32 at an address."""
    return f32x8(types.int64), lambda c, b, sig, args: load_vector(b, args[0], f32x8.llvm)


@intrinsic
def load_f64(typing, place):
    """Eight float64 at an address."""
    return f64x8(types.int64), lambda c, b, sig, args: load_vector(b, args[0], f64x8.llvm)


@intrinsic
def load_f32x16(typing, place):
    """Sixteen float32 at an address."""
    return f32x16(types.int64), lambda c, b, sig, args: load_vector(b, args[0], f32x16.llvm)


@intrinsic
def scalar_f32(typing, place):
    """One float32 at an address."""

    def codegen(context, builder, sig, args):
        loaded = builder.load(pointer_to(builder, args[0], ir.FloatType()))
        loaded.align = 1
        return loaded

    return types.float32(types.int64), codegen


def ask_for(builder: Any, pointer: Any) -> None:
    """Asks for the cache line that a pointer points to; never faults."""
    integer, byte_pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [byte_pointer, integer, integer, integer]),
        "llvm.prefetch.p0i8",
    )
    hints = [ir.Constant(integer, hint) for hint in (0, 3, 1)]  # read, keep, data
    builder.call(function, [builder.bitcast(pointer, byte_pointer), *hints])


@intrinsic
def prefetch(typing, place):
    """Asks for the cache line at an address; never faults."""

    def codegen(context, builder, sig, args):
        ask_for(builder, pointer_to(builder, args[0], ir.IntType(8)))
        return context.get_dummy_value()

    return types.void(types.int64), codegen
