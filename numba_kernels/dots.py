"""Products of one token with rows of a stored weight, streamed through registers.

Four rows at a time share the loads of the token, and each sum has time to settle before the next
is added to it.
"""

from __future__ import annotations

from numba import njit

from numba_kernels.formats import bytes_of, group_of, scale_at, weights8
from numba_kernels.simd import fma, load, prefetch, total, zeros

CACHE_LINE = 64
"""Bytes."""


@njit
def add4(w, place, stride, scales, x, at, sums):
    """Adds eight columns' products of four rows with a token to their sums."""
    token = load(x, at)
    return (
        fma(weights8(w, place, scales[0], x), token, sums[0]),
        fma(weights8(w, place + stride, scales[1], x), token, sums[1]),
        fma(weights8(w, place + 2 * stride, scales[2], x), token, sums[2]),
        fma(weights8(w, place + 3 * stride, scales[3], x), token, sums[3]),
    )


@njit
def dot4(w, row, x, start):
    """Products of four rows with one token, the token's columns from ``start`` on."""
    sums = (zeros(x[0]), zeros(x[0]), zeros(x[0]), zeros(x[0]))
    group = group_of(w)
    groups = w.columns // group
    stride, step = bytes_of(w, w.columns), bytes_of(w, 8)
    rows = w.data + row * stride
    for g in range(groups):
        scales = (
            scale_at(w, row * groups + g),
            scale_at(w, (row + 1) * groups + g),
            scale_at(w, (row + 2) * groups + g),
            scale_at(w, (row + 3) * groups + g),
        )
        begin, end = g * group, (g + 1) * group
        for column in range(begin, end - 31, 32):
            place = rows + bytes_of(w, column)
            if bytes_of(w, column) % CACHE_LINE == 0:
                # The rows that come next: reading four at a time hides that they follow.
                for r in range(4, 8):
                    prefetch(place + r * stride)
            for i in range(4):
                at = start + column + 8 * i
                sums = add4(w, place + i * step, stride, scales, x, at, sums)
        for column in range(begin + group // 32 * 32, end, 8):
            place = rows + bytes_of(w, column)
            sums = add4(w, place, stride, scales, x, start + column, sums)
    return total(sums[0]), total(sums[1]), total(sums[2]), total(sums[3])


@njit
def dot1(w, row, x, start):
    """The product of one row with one token."""
    a = zeros(x[0])
    group = group_of(w)
    groups = w.columns // group
    place = w.data + row * bytes_of(w, w.columns)
    for g in range(groups):
        scale = scale_at(w, row * groups + g)
        for column in range(g * group, (g + 1) * group, 8):
            a = fma(weights8(w, place, scale, x), load(x, start + column), a)
            place += bytes_of(w, 8)
    return total(a)


@njit
def rows_times_vector(w, first, last, x, start, out, place):
    """Rows ``first`` to ``last`` times one token, to ``out[place:]``."""
    row = first
    while row + 4 <= last:
        at = place + row - first
        out[at], out[at + 1], out[at + 2], out[at + 3] = dot4(w, row, x, start)
        row += 4
    while row < last:
        out[place + row - first] = dot1(w, row, x, start)
        row += 1
