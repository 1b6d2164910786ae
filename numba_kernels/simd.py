"""A vector type for Numba: eight lanes that compute the same bits on every CPU.

LLVM compiles ``<8 x float>`` to one AVX register, two SSE or NEON registers, or half an AVX-512
register; the lanes, and so the sums, are the same. ``f32x8`` holds eight float32, ``f64x8``
eight float64, ``i32x8`` eight int32; ``f32x16`` two f32x8 side by side, for kernels that work
on two tokens at a time.

Inside ``@njit`` code the operators ``+ - * /`` work lane by lane; ``fma`` rounds once. Addresses
are plain integers, so that a kernel can walk a memory-mapped file of ninety thousand tensors
with a table of offsets. Nothing here checks bounds: kernels are called through checked doors.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

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

_HALF = {f32x16: f32x8, f64x16: f64x8}
_DOUBLE = {half: whole for whole, half in _HALF.items()}
_FLOATS = (f32x8, f32x16, f64x8, f64x16)


def splat_lanes(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    """``value`` in every lane."""
    one = builder.insert_element(
        ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
    )
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """The named lanes of ``a`` followed by ``b``."""
    return builder.shuffle_vector(
        a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    )


def _pointer(builder: Any, address: Any, target: ir.Type) -> Any:
    return builder.inttoptr(address, target.as_pointer())


def load_vector(builder: Any, address: Any, vector: ir.VectorType) -> Any:
    """The vector at an address."""
    loaded = builder.load(_pointer(builder, address, vector))
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


# --- making and taking apart -----------------------------------------------------------------


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
    return vector(like), lambda c, builder, sig, args: _constant(vector.llvm, 0.0)


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


@intrinsic
def total(typing, v):
    """The sum of the lanes by a fixed tree: halves added until one is left."""
    if v not in (f32x8, f64x8):
        return None

    def codegen(context, builder, sig, args):
        (value,) = args
        width = v.lanes
        while width > 1:
            half = width // 2
            low = shuffle(builder, value, value, list(range(half)))
            high = shuffle(builder, value, value, list(range(half, width)))
            value, width = builder.fadd(low, high), half
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return v.scalar(v), codegen


@intrinsic
def lane(typing, v, index):
    """One lane as a number."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], builder.trunc(args[1], ir.IntType(32)))

    return v.scalar(v, types.intp), codegen


# --- arithmetic ------------------------------------------------------------------------------


@intrinsic
def fma(typing, a, b, c):
    """``a * b + c``, rounded once."""
    if not (a == b == c and a in _FLOATS):
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
            return getattr(builder, emit_float if a in _FLOATS else emit_int)(*args)

        return a(a, b), codegen

    @overload(operation)
    def typed(a, b):
        if isinstance(a, Vector) and a == b and (emit_float if a in _FLOATS else emit_int):
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
            if a in _FLOATS:
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
def greatest(typing, v):
    """The greatest lane."""

    def codegen(context, builder, sig, args):
        (value,) = args
        width = v.lanes
        while width > 1:
            half = width // 2
            low = shuffle(builder, value, value, list(range(half)))
            high = shuffle(builder, value, value, list(range(half, width)))
            value = builder.select(builder.fcmp_ordered(">", low, high), low, high)
            width = half
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return v.scalar(v), codegen


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


# --- conversions -----------------------------------------------------------------------------

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
        odd = builder.and_(builder.lshr(raw, _constant(integer, 16)), _constant(integer, 1))
        up = builder.add(raw, builder.add(odd, _constant(integer, 0x7FFF)))
        rounded = builder.and_(up, _constant(integer, 0xFFFF0000 - (1 << 32)))
        ordered = builder.fcmp_ordered("ord", args[0], args[0])
        return builder.select(ordered, builder.bitcast(rounded, v.llvm), args[0])

    return v(v), codegen


# --- memory ----------------------------------------------------------------------------------


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
    wide = builder.shl(builder.zext(raw, floats.bits), _constant(floats.bits, 16))
    return builder.bitcast(wide, floats.llvm)


def _int4(builder: Any, place: Any, floats: Vector) -> Any:
    integer, words = floats.bits, floats.lanes // 8
    loaded = load_vector(builder, place, ir.VectorType(ir.IntType(32), words))
    each = shuffle(builder, loaded, loaded, [lane // 8 for lane in range(floats.lanes)])
    shifts = ir.Constant(integer, [4 * (lane % 8) for lane in range(floats.lanes)])
    codes = builder.and_(builder.lshr(each, shifts), _constant(integer, 15))
    return builder.sitofp(builder.sub(codes, _constant(integer, 8)), floats.llvm)


def _int8(builder: Any, place: Any, floats: Vector) -> Any:
    raw = load_vector(builder, place, ir.VectorType(ir.IntType(8), floats.lanes))
    codes = builder.sub(builder.zext(raw, floats.bits), _constant(floats.bits, 128))
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
load_f32x16 = _loader(f32x16, "Sixteen float32.", lambda b, place, v: load_vector(b, place, v.llvm))
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
        magnitude = builder.and_(raw, _constant(integer, 0x7F))
        normal = builder.add(
            builder.shl(magnitude, _constant(integer, 20)), _constant(integer, 120 << 23)
        )
        tiny = builder.fmul(builder.sitofp(magnitude, f32x8.llvm), _constant(f32x8.llvm, 2.0**-9))
        is_tiny = builder.icmp_signed("<", magnitude, _constant(integer, 8))
        value = builder.select(is_tiny, builder.bitcast(tiny, integer), normal)
        sign = builder.shl(builder.and_(raw, _constant(integer, 0x80)), _constant(integer, 24))
        return builder.bitcast(builder.or_(value, sign), f32x8.llvm)

    return f32x8(types.int64), codegen


@intrinsic
def scalar_bf16(typing, place):
    """One bfloat16 at an address."""

    def codegen(context, builder, sig, args):
        raw = builder.load(_pointer(builder, args[0], ir.IntType(16)))
        raw.align = 1
        wide = builder.shl(builder.zext(raw, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.int64), codegen


@intrinsic
def scalar_f32(typing, place):
    """One float32 at an address."""

    def codegen(context, builder, sig, args):
        loaded = builder.load(_pointer(builder, args[0], ir.FloatType()))
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
        ask_for(builder, _pointer(builder, args[0], ir.IntType(8)))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def assembly(function: Any) -> str:
    """The machine code of a compiled function's last signature, for looking at loops."""
    return str(list(function.inspect_asm().values())[-1])


__all__ = [name for name in dir() if not name.startswith("_") and name != "Any"]
