"""The vector types, and the LLVM instructions that kernels of vectors are built from.

These functions run when a kernel is compiled: they take a builder and write code. What kernels
themselves call stands in ``simd``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

LANES = 8
"""Lane ``k mod 8`` of a sum takes element k: part of the definition of every reduction."""

CACHE_LINE = 64
"""Bytes."""


class Vector(types.Type):
    """A Numba type for ``lanes`` numbers of one scalar type."""

    def __init__(self, scalar: types.Type, element: ir.Type, lanes: int) -> None:
        self.scalar = scalar
        self.element = element
        self.lanes = lanes
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=f"{scalar}x{lanes}")

    @property
    def bits(self) -> ir.VectorType:
        """The integer vector of the same size."""
        width = 64 if self.scalar == types.float64 else 32
        return ir.VectorType(ir.IntType(width), self.lanes)


class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


register_model(Vector)(_VectorModel)

f32x8 = Vector(types.float32, ir.FloatType(), 8)
f32x16 = Vector(types.float32, ir.FloatType(), 16)
f64x8 = Vector(types.float64, ir.DoubleType(), 8)
f64x16 = Vector(types.float64, ir.DoubleType(), 16)
i32x8 = Vector(types.int32, ir.IntType(32), 8)
i64x8 = Vector(types.int64, ir.IntType(64), 8)
i32x16 = Vector(types.int32, ir.IntType(32), 16)
i64x16 = Vector(types.int64, ir.IntType(64), 16)
mask8 = Vector(types.boolean, ir.IntType(1), 8)
mask16 = Vector(types.boolean, ir.IntType(1), 16)

FLOATS = (f32x8, f32x16, f64x8, f64x16)


def splat_lanes(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    """``value`` in every lane."""
    one = builder.insert_element(
        ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
    )
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def constant(vector: ir.VectorType, value: float) -> ir.Constant:
    """A number known when compiling, in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """The named lanes of ``a`` followed by ``b``."""
    return builder.shuffle_vector(
        a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    )


def pointer_to(builder: Any, address: Any, target: ir.Type) -> Any:
    """An address as a pointer to something of LLVM's type ``target``."""
    return builder.inttoptr(address, target.as_pointer())


def load_vector(builder: Any, address: Any, vector: ir.VectorType) -> Any:
    """The vector at an address."""
    loaded = builder.load(pointer_to(builder, address, vector))
    loaded.align = 1  # a file may hold a tensor at any byte
    return loaded


def call_llvm(builder: Any, name: str, vector: ir.VectorType, arguments: list[Any]) -> Any:
    """An LLVM intrinsic on vectors, for instance ``llvm.fma`` on <8 x float>."""
    scalar = {"float": "f32", "double": "f64"}[str(vector.element)]
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [vector] * len(arguments)),
        f"{name}.v{vector.count}{scalar}",
    )
    return builder.call(function, arguments)
