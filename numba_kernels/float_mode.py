"""Keeping denormals: a library may have told this thread to flush them to zero."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_kernels.jit import single

_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
DEFAULT_MXCSR = 0x1F80
"""Round to nearest even, all exceptions masked, denormals kept."""


def _control_register(builder: Any, name: str, slot: Any) -> None:
    byte_pointer = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte_pointer]), f"llvm.x86.sse.{name}"
    )
    builder.call(function, [builder.bitcast(slot, byte_pointer)])


@intrinsic
def exact_floats(typing):
    """Sets this thread to IEEE arithmetic with denormals; returns the mode to restore."""

    def codegen(context, builder, sig, args):
        before = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(32), DEFAULT_MXCSR))
        wanted = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(32), DEFAULT_MXCSR))
        if _X86:
            _control_register(builder, "stmxcsr", before)
            _control_register(builder, "ldmxcsr", wanted)
        return builder.load(before)

    return types.int32(), codegen


@intrinsic
def restore_floats(typing, mode):
    """Back to the mode that ``exact_floats`` found."""

    def codegen(context, builder, sig, args):
        if _X86:
            slot = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(args[0], slot)
            _control_register(builder, "ldmxcsr", slot)
        return context.get_dummy_value()

    return types.void(types.int32), codegen


@single
def enter():
    """``exact_floats`` for the calling thread, from Python."""
    return exact_floats()


@single
def leave(mode):
    """``restore_floats`` for the calling thread, from Python."""
    restore_floats(mode)
