"""Work on each number by itself: rotation, gating, adding up experts' outputs.

The plain twins stand in ``laguna_ref/ops`` (rope, gate, experts) and give the same bits: each
product and each sum is rounded once, in both. What kernels add is that all threads share it and
that no array is made in between. Arrays are flat and C-ordered.
"""

from __future__ import annotations

from numba import njit, prange

from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.jit import kernel
from numba_kernels.rows import ELEMENTS_A_TASK, rounded
from numba_kernels.simd import load, splat, store


@njit
def rows_a_task(width):
    """Rows of so many numbers that are worth handing to a thread."""
    return max(1, ELEMENTS_A_TASK // width)


@kernel
def rotate(x, tokens, heads, width, cos, sin, half, round_product, round_sum, out):
    """RoPE: x [tokens, heads, width], cos and sin [tokens, half], ``half`` a multiple of eight."""
    chunk = rows_a_task(width)
    rows = tokens * heads
    for task in prange((rows + chunk - 1) // chunk):
        mode = exact_floats()
        for row in range(task * chunk, min(rows, (task + 1) * chunk)):
            at, angle = row * width, row // heads * half
            for k in range(0, half, 8):
                a, b = load(x, at + k), load(x, at + half + k)
                c, s = load(cos, angle + k), load(sin, angle + k)
                left = rounded(a * c, round_product) - rounded(b * s, round_product)
                right = rounded(b * c, round_product) + rounded(a * s, round_product)
                store(out, at + k, rounded(left, round_sum))
                store(out, at + half + k, rounded(right, round_sum))
            for k in range(at + 2 * half, at + width):
                out[k] = x[k]
        restore_floats(mode)


@kernel
def scale_rows(x, rows, width, factors, round_product, out):
    """Each row of ``width`` numbers, a multiple of eight, times a factor of its own."""
    chunk = rows_a_task(width)
    for task in prange((rows + chunk - 1) // chunk):
        mode = exact_floats()
        for row in range(task * chunk, min(rows, (task + 1) * chunk)):
            factor = splat(factors[row])
            for k in range(row * width, (row + 1) * width, 8):
                store(out, k, rounded(load(x, k) * factor, round_product))
        restore_floats(mode)


@kernel
def add_slots(slots, tokens, top_k, width, round_sum, out):
    """slots [tokens, top_k, width] added in order of k -> out [tokens, width]."""
    chunk = rows_a_task(width)
    for task in prange((tokens + chunk - 1) // chunk):
        mode = exact_floats()
        for token in range(task * chunk, min(tokens, (task + 1) * chunk)):
            first = token * top_k * width
            for k in range(0, width, 8):
                total = load(slots, first + k)
                for slot in range(1, top_k):
                    total = total + load(slots, first + slot * width + k)
                store(out, token * width + k, rounded(total, round_sum))
        restore_floats(mode)


@kernel
def greatest_of_row(x, rows, width, count, places):
    """Where the ``count`` greatest of each row stand, greatest first, ties to the lower place.

    What is not a number is never chosen. places: int64 [rows * count], zeros.
    """
    chunk = rows_a_task(width)
    for task in prange((rows + chunk - 1) // chunk):
        mode = exact_floats()  # comparing flushes denormals too
        for row in range(task * chunk, min(rows, (task + 1) * chunk)):
            numbers = x[row * width : (row + 1) * width]
            chosen = places[row * count : (row + 1) * count]
            filled = 0
            for k in range(width):
                spot = filled
                while spot > 0 and numbers[chosen[spot - 1]] < numbers[k]:
                    spot -= 1
                if spot < count and numbers[k] == numbers[k]:
                    filled = min(filled + 1, count)
                    chosen[spot + 1 : filled] = chosen[spot : filled - 1].copy()
                    chosen[spot] = k
        restore_floats(mode)
