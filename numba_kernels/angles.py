"""Cosine and sine of RoPE's angles, the same bits on every machine.

Library versions differ between CPUs in the last place of a float64, which once in a while moves
the float32 they are rounded to. The plain twin is ``rope_tables`` in ``laguna_ref/ops/rope.py``.
"""

from __future__ import annotations

import math

from numba import njit, prange

from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.jit import kernel
from numba_kernels.rows import ELEMENTS_A_TASK, tasks
from numba_kernels.simd import bits, fma, int_splat, load, number, select, store
from numba_kernels.vector_math import polynomial

ROUNDING = 1.5 * 2**52
TWO_OVER_PI = 2 / math.pi
HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
"""pi/2 as the sum of three float64: next to a multiple of it, two leave too few digits."""

# With z = r**2, |r| <= pi/4: sin(r) = r + r z (-1/6 + ...), cos(r) = 1 - z/2 + z**2 (1/24 - ...)
_sine_tail = polynomial(*((-1) ** k / math.factorial(2 * k + 1) for k in range(1, 9)))
_cosine_tail = polynomial(*((-1) ** k / math.factorial(2 * k) for k in range(2, 10)))


@njit
def cosine_and_sine(x):
    """Of eight float64 angles, 0 <= x < 2**20; within 2 ulp (float64).

    The angle is reduced by a multiple n of pi/2. The first step is exact: both terms are
    multiples of 2**-52 and their difference is below 1.
    """
    shifted = fma(x, number(x, TWO_OVER_PI), number(x, ROUNDING))
    n = shifted - number(x, ROUNDING)
    r = fma(n, number(x, -HALF_PI[1]), fma(n, number(x, -HALF_PI[0]), x))
    r = fma(n, number(x, -HALF_PI[2]), r)
    z = r * r
    sine = fma(r * z, _sine_tail(z), r)
    cosine = fma(z * z, _cosine_tail(z), fma(z, number(x, -0.5), number(x, 1.0)))
    quarter = bits(shifted) & int_splat(bits(shifted), 3)
    odd = (quarter & int_splat(quarter, 1)) == int_splat(quarter, 1)
    zero = number(x, 0.0)
    turned_cosine, turned_sine = select(odd, zero - sine, cosine), select(odd, cosine, sine)
    back = (quarter & int_splat(quarter, 2)) == int_splat(quarter, 2)
    return (
        select(back, zero - turned_cosine, turned_cosine),
        select(back, zero - turned_sine, turned_sine),
    )


@kernel
def cosines_and_sines(angles, cosines, sines):
    """Of a flat float64 array whose length is a multiple of eight."""
    for task in prange(tasks(angles)):
        mode = exact_floats()
        first = task * ELEMENTS_A_TASK
        for k in range(first, min(len(angles), first + ELEMENTS_A_TASK), 8):
            cosine, sine = cosine_and_sine(load(angles, k))
            store(cosines, k, cosine)
            store(sines, k, sine)
        restore_floats(mode)
