"""Products of one token with rows of a stored weight, streamed through registers.

Four rows at a time share the loads of the token, and each sum has time to settle before the next
is added to it. The four lie apart, so that each is one of four long streams: memory is read faster
in a few streams than in one, and faster than row by row.
"""

from __future__ import annotations

from numba import njit

from numba_kernels.formats import (
    bytes_of,
    factor8,
    factor8x2,
    group_of,
    scale_at,
    weights8,
    weights8x2,
)
from numba_kernels.simd import (
    CACHE_LINE,
    both,
    fma,
    high_half,
    load,
    low_half,
    prefetch,
    total,
    zeros,
)

AHEAD_BYTES, AHEAD_COLUMNS = 1024, 1024
"""How far ahead each stream is fetched, whichever is less: the processor itself stops at each
page's end, and what comes too early is gone again."""


@njit
def add4(w, place, stride, factors, x, at, sums):
    """Adds eight columns' products of four rows with a token to their sums, two rows a vector."""
    token = both(load(x, at))
    upper, lower = place + stride, place + 2 * stride
    return (
        fma(weights8x2(w, place, upper, factors[0], x), token, sums[0]),
        fma(weights8x2(w, lower, lower + stride, factors[1], x), token, sums[1]),
    )


@njit
def dot4(w, row, apart, x, start):
    """Products of rows ``row``, ``row + apart``, ... (four) with one token, whose columns begin
    at ``x[start]``."""
    nothing = both(zeros(x[0]))
    sums = (nothing, nothing)
    group = group_of(w)
    groups = w.columns // group
    stride, step = apart * bytes_of(w, w.columns), bytes_of(w, 8)
    rows = w.data + row * bytes_of(w, w.columns)
    ahead = min(AHEAD_BYTES, bytes_of(w, AHEAD_COLUMNS))
    for g in range(groups):
        at, next_row = row * groups + g, apart * groups
        factors = (
            factor8x2(w, scale_at(w, at), scale_at(w, at + next_row), x),
            factor8x2(w, scale_at(w, at + 2 * next_row), scale_at(w, at + 3 * next_row), x),
        )
        begin, end = g * group, (g + 1) * group
        for column in range(begin, end - 31, 32):
            place = rows + bytes_of(w, column)
            if bytes_of(w, column) % CACHE_LINE == 0:
                for r in range(4):
                    prefetch(place + r * stride + ahead)
            for i in range(4):
                at = start + column + 8 * i
                sums = add4(w, place + i * step, stride, factors, x, at, sums)
        for column in range(begin + group // 32 * 32, end, 8):
            place = rows + bytes_of(w, column)
            sums = add4(w, place, stride, factors, x, start + column, sums)
    ab, cd = sums
    return total(low_half(ab)), total(high_half(ab)), total(low_half(cd)), total(high_half(cd))


@njit
def dot1(w, row, x, start):
    """The product of one row with one token."""
    a = zeros(x[0])
    group = group_of(w)
    groups = w.columns // group
    place = w.data + row * bytes_of(w, w.columns)
    for g in range(groups):
        factor = factor8(w, scale_at(w, row * groups + g), x)
        for column in range(g * group, (g + 1) * group, 8):
            a = fma(weights8(w, place, factor, x), load(x, start + column), a)
            place += bytes_of(w, 8)
    return total(a)


@njit
def rows_times_vector(w, first, last, x, start, out, place):
    """Rows ``first`` to ``last`` times one token, to ``out[place:]``."""
    apart = (last - first) // 4
    for row in range(apart):
        a, b, c, d = (
            place + row,
            place + row + apart,
            place + row + 2 * apart,
            place + row + 3 * apart,
        )
        out[a], out[b], out[c], out[d] = dot4(w, first + row, apart, x, start)
    for row in range(first + 4 * apart, last):
        out[place + row - first] = dot1(w, row, x, start)
