"""Work on each row by itself: RMS norm, softmax's parts, activations.

Arrays are flat and C-ordered; a row's length is a multiple of eight (callers pad with zeros,
which add nothing to a sum). Element k of a sum goes to lane ``k mod 8``. ``round_...`` flags say
whether a bfloat16 rounding point is on; see ``laguna_ref/numerics.py`` for the points.
"""

from __future__ import annotations

from numba import njit, prange
from numba.extending import overload

from numba_kernels import vector_math
from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.jit import kernel
from numba_kernels.simd import (
    f32x8,
    fma,
    load,
    number,
    round_bf16,
    splat,
    sqrt,
    store,
    total,
    zeros,
)

ELEMENTS_A_TASK = 8192


def rounded(v, wanted):
    """``v``, rounded to bfloat16 if asked for; float64 is never rounded."""
    raise NotImplementedError("only inside compiled code")


@overload(rounded)
def _rounded(v, wanted):
    if v == f32x8:
        return lambda v, wanted: round_bf16(v) if wanted else v
    return lambda v, wanted: v


@kernel
def rms_norm(x, rows, width, real, weight, eps, round_normalised, round_weighted, out):
    """Rows of x scaled to unit root mean square, times ``weight``.

    ``real`` columns count in the mean (the rest is padding).
    """
    chunk = max(1, ELEMENTS_A_TASK // width)
    for task in prange((rows + chunk - 1) // chunk):
        mode = exact_floats()
        for row in range(task * chunk, min(rows, (task + 1) * chunk)):
            at = row * width
            squares = zeros(x[0])
            for k in range(0, width, 8):
                v = load(x, at + k)
                squares = fma(v, v, squares)
            mean = splat(total(squares)) / number(squares, float(real))
            one = number(squares, 1.0)
            inverse = one / sqrt(mean + number(squares, eps))
            for k in range(0, width, 8):
                normalised = rounded(load(x, at + k) * inverse, round_normalised)
                store(out, at + k, rounded(load(weight, k) * normalised, round_weighted))
        restore_floats(mode)


@njit
def apply(function, x, out, task):
    """A function of one vector over the ``task``-th stretch of a flat array."""
    mode = exact_floats()
    for k in range(task * ELEMENTS_A_TASK, min(len(x), (task + 1) * ELEMENTS_A_TASK), 8):
        store(out, k, function(load(x, k)))
    restore_floats(mode)


@njit
def tasks(x):
    """Stretches of a flat array."""
    return (len(x) + ELEMENTS_A_TASK - 1) // ELEMENTS_A_TASK


@kernel
def softplus(x, out):
    """``log(1 + exp(x))`` of a flat array."""
    for task in prange(tasks(x)):
        apply(vector_math.softplus, x, out, task)


@kernel
def sigmoid(x, out):
    """``1 / (1 + exp(-x))`` of a flat array."""
    for task in prange(tasks(x)):
        apply(vector_math.sigmoid, x, out, task)


@kernel
def tanh(x, out):
    """Of a flat array."""
    for task in prange(tasks(x)):
        apply(vector_math.tanh, x, out, task)


@njit
def exponential(x):
    """``exp(x)``, as a function that can be handed on."""
    return vector_math.exp(x)


@kernel
def exp(x, out):
    """Of a flat array."""
    for task in prange(tasks(x)):
        apply(exponential, x, out, task)


@kernel
def row_sums(x, rows, width, out):
    """The sum of each row of a flat array."""
    for row in prange(rows):
        mode = exact_floats()
        sums = zeros(x[0])
        for k in range(row * width, (row + 1) * width, 8):
            sums = sums + load(x, k)
        out[row] = total(sums)
        restore_floats(mode)


@njit
def swiglu_row(gate, up, at, width, round_linear, round_activation, round_product):
    """``silu(gate) * up`` into ``gate``, in place."""
    for k in range(at, at + width, 8):
        g, u = rounded(load(gate, k), round_linear), rounded(load(up, k), round_linear)
        activation = rounded(vector_math.silu(g), round_activation)
        store(gate, k, rounded(activation * u, round_product))


@kernel
def swiglu(gate, up, round_linear, round_activation, round_product):
    """``silu(gate) * up`` of flat arrays, into ``gate``."""
    for task in prange(tasks(gate)):
        mode = exact_floats()
        first = task * ELEMENTS_A_TASK
        width = min(len(gate), first + ELEMENTS_A_TASK) - first
        swiglu_row(gate, up, first, width, round_linear, round_activation, round_product)
        restore_floats(mode)
