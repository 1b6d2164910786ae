"""A vector type for Numba: eight lanes that compute the same bits on every CPU.

LLVM compiles ``<8 x float>`` to one AVX register, two SSE or NEON registers, or half an AVX-512
register; the lanes, and so the sums, are the same. ``f32x8`` holds eight float32, ``f64x8``
eight float64, ``i32x8`` eight int32; ``f32x16`` two f32x8 side by side, for kernels that work
on two tokens at a time.

Inside ``@njit`` code the operators ``+ - * /`` work lane by lane; ``fma`` rounds once. Addresses
are plain integers, so that a kernel can walk a memory-mapped file of ninety thousand tensors
with a table of offsets. Nothing here checks bounds: kernels are called through checked doors.

This is the door to all of it: ``vectors`` has the types, the other modules what is done to them.
"""

from __future__ import annotations

from numba_kernels.arithmetic import (
    absolute,
    fma,
    maximum,
    select,
    shift_left,
    shift_right,
    sqrt,
)
from numba_kernels.conversions import (
    bits,
    floats,
    int_splat,
    number,
    round_bf16,
    to_f32,
    to_f64,
)
from numba_kernels.lanes import (
    both,
    greatest,
    high_half,
    lane,
    low_half,
    pair,
    splat,
    total,
    zeros,
)
from numba_kernels.memory import (
    address,
    ask_for,
    load,
    load_f32,
    load_f32x16,
    load_f64,
    prefetch,
    scalar_f32,
    store,
)
from numba_kernels.stored_numbers import (
    load_bf16,
    load_bf16x16,
    load_e4m3,
    load_int4,
    load_int4x16,
    load_int8,
    load_int8x16,
    scalar_bf16,
)
from numba_kernels.vectors import (
    CACHE_LINE,
    LANES,
    Vector,
    call_llvm,
    f32x8,
    f32x16,
    f64x8,
    f64x16,
    i32x8,
    i32x16,
    i64x8,
    i64x16,
    load_vector,
    mask8,
    mask16,
    shuffle,
    splat_lanes,
)

__all__ = [
    "CACHE_LINE",
    "LANES",
    "Vector",
    "absolute",
    "address",
    "ask_for",
    "bits",
    "both",
    "call_llvm",
    "f32x8",
    "f32x16",
    "f64x8",
    "f64x16",
    "floats",
    "fma",
    "greatest",
    "high_half",
    "i32x8",
    "i32x16",
    "i64x8",
    "i64x16",
    "int_splat",
    "lane",
    "load",
    "load_bf16",
    "load_bf16x16",
    "load_e4m3",
    "load_f32",
    "load_f32x16",
    "load_f64",
    "load_int4",
    "load_int4x16",
    "load_int8",
    "load_int8x16",
    "load_vector",
    "low_half",
    "mask8",
    "mask16",
    "maximum",
    "number",
    "pair",
    "prefetch",
    "round_bf16",
    "scalar_bf16",
    "scalar_f32",
    "select",
    "shift_left",
    "shift_right",
    "shuffle",
    "splat",
    "splat_lanes",
    "sqrt",
    "store",
    "to_f32",
    "to_f64",
    "total",
    "zeros",
]
