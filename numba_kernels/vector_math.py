"""exp, softplus, sigmoid, silu and tanh of vectors: fixed polynomials in fused multiply-adds.

Library versions (libm, SVML, NumPy) differ in the last place between CPUs. These compute the
same bits everywhere, because every step is one correctly rounded operation in a fixed order.
Their greatest errors are measured by ``tests/numba_kernels/test_vector_math.py``.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from numba_kernels.simd import (
    absolute,
    bits,
    call_llvm,
    f32x8,
    f32x16,
    f64x8,
    f64x16,
    floats,
    fma,
    int_splat,
    number,
    select,
    shift_left,
    shift_right,
)


def polynomial(*coefficients: float) -> Any:
    """An intrinsic for ``c0 + c1 x + c2 x**2 + ...`` of a vector, by Horner's rule with fma."""

    @intrinsic
    def evaluate(typing, x):
        def codegen(context, builder, sig, args):
            def constant(value: float) -> ir.Constant:
                return ir.Constant(x.llvm, [value] * x.lanes)

            result = constant(coefficients[-1])
            for value in reversed(coefficients[:-1]):
                result = call_llvm(builder, "llvm.fma", x.llvm, [result, args[0], constant(value)])
            return result

        return x(x), codegen

    return evaluate


def _single(value: float) -> float:
    """The float32 nearest to ``value``."""
    import numpy as np

    return float(np.float32(value))


# exp(r) = 1 + r + r**2 (1/2 + r/6 + ...), |r| <= ln(2)/2. The first neglected term is below
# 0.1 ulp for the degree chosen.
_exp_tail_f32 = polynomial(*(_single(1 / math.factorial(k)) for k in range(2, 9)))
_exp_tail_f64 = polynomial(*(1 / math.factorial(k) for k in range(2, 15)))
# log(1 + y) = s (1 + z/3 + z**2/5 + ...) with s = 2 y / (2 + y), z = s**2 / 4 <= 1/9; the
# quarters are in the coefficients. Half of y, were it subnormal, would lose a bit.
_atanh_f32 = polynomial(*(_single(1 / (2 * k + 1)) / 4**k for k in range(9)))
_atanh_f64 = polynomial(*(1 / (2 * k + 1) / 4**k for k in range(18)))

# ln(2) in two pieces; a count of halvings times the first is exact.
LN2_HIGH_F32, LN2_LOW_F32 = 0.693145751953125, 1.428606765330187e-06
LN2_HIGH_F64, LN2_LOW_F64 = 0.6931471803691238, 1.9082149292705877e-10
LOG2_E = 1 / math.log(2)
ROUNDING_F32, ROUNDING_F64 = 1.5 * 2**23, 1.5 * 2**52
"""Adding and subtracting this rounds to an integer, which its low bits then hold."""
LARGEST_F32, SMALLEST_F32 = 89.0, -104.0
LARGEST_F64, SMALLEST_F64 = 710.0, -746.0
"""Beyond these exp is infinite, or zero."""


def _by_type(single: Any, double: Any) -> Any:
    """A function of one vector with a body for each float type."""

    def function(x):
        raise NotImplementedError("only inside compiled code")

    @overload(function)
    def typed(x):
        body = {f32x8: single, f32x16: single, f64x8: double, f64x16: double}.get(x)
        return None if body is None else lambda x: body(x)

    return function


@njit
def _times_power_of_two(x, n):
    """``x * 2**n`` in two steps, so that neither power leaves the range of normal numbers."""
    half = shift_right(n + int_splat(n, 4096), 1) - int_splat(n, 2048)
    return x * power_of_two(half) * power_of_two(n - half)


def power_of_two(n):
    """``2**n`` of integers in the range of normal numbers, as a float vector."""
    raise NotImplementedError("only inside compiled code")


@overload(power_of_two)
def _power_of_two(n):
    bias, mantissa = (127, 23) if n.scalar == types.int32 else (1023, 52)
    return lambda n: floats(shift_left(n + int_splat(n, bias), mantissa))


def _reduction(rounding, high, low):
    """x = n ln(2) + r with |r| <= ln(2)/2: r, and n as an integer vector."""

    @njit
    def reduce(x):
        shifted = fma(x, number(x, LOG2_E), number(x, rounding))
        n = shifted - number(x, rounding)
        r = fma(n, number(x, -low), fma(n, number(x, -high), x))
        return r, bits(shifted) - bits(number(x, rounding))

    return reduce


_reduce_f32 = _reduction(ROUNDING_F32, LN2_HIGH_F32, LN2_LOW_F32)
_reduce_f64 = _reduction(ROUNDING_F64, LN2_HIGH_F64, LN2_LOW_F64)


@njit
def _clamp(x, low, high):
    """Leaves a NaN as it is, because every comparison with it is false."""
    x = select(x > number(x, high), number(x, high), x)
    return select(x < number(x, low), number(x, low), x)


@njit
def _exp_f32(x):
    r, n = _reduce_f32(_clamp(x, SMALLEST_F32, LARGEST_F32))
    return _times_power_of_two(fma(_exp_tail_f32(r), r * r, r) + number(x, 1.0), n)


@njit
def _exp_f64(x):
    r, n = _reduce_f64(_clamp(x, SMALLEST_F64, LARGEST_F64))
    return _times_power_of_two(fma(_exp_tail_f64(r), r * r, r) + number(x, 1.0), n)


exp = _by_type(_exp_f32, _exp_f64)
"""``exp(x)``; ``exp(0)`` is exactly 1, ``exp(-inf)`` exactly 0."""


@njit
def _expm1_f32(x):
    # Below -40 the result is -1 to the last bit; the power of two must stay a normal number.
    r, n = _reduce_f32(_clamp(x, -40.0, LARGEST_F32))
    scale = power_of_two(n)
    return fma(scale, fma(_exp_tail_f32(r), r * r, r), scale - number(x, 1.0))


@njit
def _expm1_f64(x):
    r, n = _reduce_f64(_clamp(x, -40.0, LARGEST_F64))
    scale = power_of_two(n)
    return fma(scale, fma(_exp_tail_f64(r), r * r, r), scale - number(x, 1.0))


expm1 = _by_type(_expm1_f32, _expm1_f64)
"""``exp(x) - 1`` for x <= 0, accurate near 0."""


@njit
def _log1p_f32(y):
    s = (y + y) / (number(y, 2.0) + y)
    return s * _atanh_f32(s * s)


@njit
def _log1p_f64(y):
    s = (y + y) / (number(y, 2.0) + y)
    return s * _atanh_f64(s * s)


log1p = _by_type(_log1p_f32, _log1p_f64)
"""``log(1 + y)`` for 0 <= y <= 1."""


@njit
def softplus(x):
    """``log(1 + exp(x))`` as ``max(x, 0) + log1p(exp(-|x|))``."""
    zero = number(x, 0.0)
    return select(x > zero, x, zero) + log1p(exp(zero - absolute(x)))


@njit
def sigmoid(x):
    """``1 / (1 + exp(-x))``; the exponential never overflows."""
    one = number(x, 1.0)
    e = exp(number(x, 0.0) - absolute(x))
    return select(x < number(x, 0.0), e, one) / (one + e)


@njit
def silu(x):
    """``x * sigmoid(x)``."""
    return x * sigmoid(x)


@njit
def tanh(x):
    """``(1 - exp(-2|x|)) / (1 + exp(-2|x|))`` with the sign of x."""
    e = expm1(number(x, -2.0) * absolute(x))
    result = (number(x, 0.0) - e) / (number(x, 2.0) + e)
    return select(x < number(x, 0.0), number(x, 0.0) - result, result)
