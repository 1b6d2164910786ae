"""Products of tokens with a stored weight: matrix times vector, matrix times matrix.

The plain twin is ``laguna_ref/ops/linear.py``. The weight is never held dequantised as a whole:
one token streams it through registers, several share a panel of rows that fits the cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.formats import bytes_of, group_of, scale_at, weights8
from numba_kernels.jit import kernel
from numba_kernels.simd import fma, load, prefetch, store, total, zeros
from numba_kernels.tiles import ROWS, tile

PANEL_ROWS, PANEL_COLUMNS = 16, 2048
"""A panel of dequantised weights takes 128 KB in float32: part of a second-level cache."""
TOKEN_PAIRS = 256
"""Pairs of tokens that pass by one panel before the next stretch of columns is unpacked."""

_tile1, _tile2, _tile3, _tile4 = tile(1), tile(2), tile(3), tile(4)


@njit
def dot4(w, row, x, start):
    """Products of four rows with one token, the token's columns from ``start`` on."""
    a, b, c, d = zeros(x[0]), zeros(x[0]), zeros(x[0]), zeros(x[0])
    group = group_of(w)
    groups = w.columns // group
    row_bytes = bytes_of(w, w.columns)
    for g in range(groups):
        first = g * group
        s0, s1 = scale_at(w, row * groups + g), scale_at(w, (row + 1) * groups + g)
        s2, s3 = scale_at(w, (row + 2) * groups + g), scale_at(w, (row + 3) * groups + g)
        for column in range(first, first + group, 8):
            if column % 32 == 0:
                # The rows that come next: reading four at a time hides that they follow.
                ahead = w.data + (row + 4) * row_bytes + bytes_of(w, column)
                for r in range(4):
                    prefetch(ahead + r * row_bytes)
            token = load(x, start + column)
            a = fma(weights8(w, row, column, s0, x), token, a)
            b = fma(weights8(w, row + 1, column, s1, x), token, b)
            c = fma(weights8(w, row + 2, column, s2, x), token, c)
            d = fma(weights8(w, row + 3, column, s3, x), token, d)
    return total(a), total(b), total(c), total(d)


@njit
def dot1(w, row, x, start):
    """The product of one row with one token."""
    a = zeros(x[0])
    group = group_of(w)
    groups = w.columns // group
    for g in range(groups):
        scale = scale_at(w, row * groups + g)
        for column in range(g * group, (g + 1) * group, 8):
            a = fma(weights8(w, row, column, scale, x), load(x, start + column), a)
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


@njit
def unpack(w, first, last, begin, end, panel):
    """Columns ``begin`` to ``end`` of rows ``first`` to ``last``, dequantised, row by row."""
    group = group_of(w)
    groups = w.columns // group
    for row in range(first, last):
        at = (row - first) * (end - begin) - begin
        for g in range(begin // group, (end + group - 1) // group):
            scale = scale_at(w, row * groups + g)
            for column in range(max(begin, g * group), min(end, (g + 1) * group), 8):
                store(panel, at + column, weights8(w, row, column, scale, panel))


@njit
def pack_tokens(x, columns, tokens, packed):
    """Pairs of tokens interleaved by eight: what a tile reads. An odd one is paired with zeros."""
    blocks = columns // 8
    for t in range(tokens):
        base = (t // 2) * blocks * 16 + (t % 2) * 8
        for block in range(blocks):
            store(packed, base + block * 16, load(x, t * columns + block * 8))
    if tokens % 2:
        base = (tokens // 2) * blocks * 16 + 8
        for block in range(blocks):
            store(packed, base + block * 16, zeros(x[0]))


@njit
def panel_times_tokens(
    panel, rows, columns, packed, begin, pair_size, pairs, lanes, resume, finish, out, place, step
):
    """``rows`` (a multiple of four) of a panel times packed pairs, tile by tile.

    The panel holds ``columns`` columns; the pairs' share of them begins at ``packed[begin]``,
    one pair every ``pair_size``. For ``resume``, ``finish`` and ``lanes`` (64 numbers a pair
    and four rows) see ``tiles.tile``.
    """
    blocks = columns // 8
    for row in range(0, rows, 4):
        at = row * columns
        pair = 0
        while pair < pairs:
            first = begin + pair * pair_size
            where = place + 2 * pair * step + row
            keep = (row // 4 * pairs + pair) * 64
            left = min(pairs - pair, 4)
            if left == 4:
                _tile4(
                    panel, at, columns, packed, first, pair_size, blocks,
                    lanes, keep, resume, finish, out, where, step,
                )  # fmt: skip
            elif left == 3:
                _tile3(
                    panel, at, columns, packed, first, pair_size, blocks,
                    lanes, keep, resume, finish, out, where, step,
                )  # fmt: skip
            elif left == 2:
                _tile2(
                    panel, at, columns, packed, first, pair_size, blocks,
                    lanes, keep, resume, finish, out, where, step,
                )  # fmt: skip
            else:
                _tile1(
                    panel, at, columns, packed, first, pair_size, blocks,
                    lanes, keep, resume, finish, out, where, step,
                )  # fmt: skip
            pair += left


@kernel
def matrix_vector(w, rows, x, out):
    """x [columns] -> out [rows]."""
    chunk = 64
    for c in prange((rows + chunk - 1) // chunk):
        mode = exact_floats()
        rows_times_vector(w, c * chunk, min(rows, (c + 1) * chunk), x, 0, out, c * chunk)
        restore_floats(mode)


@kernel
def matrix_matrix(w, rows, x, tokens, out):
    """x [tokens, columns], flat -> out [tokens, rows], flat."""
    columns = w.columns
    pairs = (tokens + 1) // 2
    packed = np.empty(pairs * columns * 2, x.dtype)
    pack_tokens(x, columns, tokens, packed)
    panels = (rows + PANEL_ROWS - 1) // PANEL_ROWS
    for p in prange(panels):
        mode = exact_floats()
        first, last = p * PANEL_ROWS, min(rows, (p + 1) * PANEL_ROWS)
        padded = (last - first + ROWS - 1) // ROWS * ROWS
        stretch = min(columns, PANEL_COLUMNS)
        panel = np.zeros(padded * stretch, x.dtype)
        scratch = np.empty(2 * TOKEN_PAIRS * padded, x.dtype)
        lanes = np.empty(1 if stretch == columns else TOKEN_PAIRS * padded * 16, x.dtype)
        for start in range(0, pairs, TOKEN_PAIRS):
            count = min(TOKEN_PAIRS, pairs - start)
            for begin in range(0, columns, stretch):
                end = min(begin + stretch, columns)
                unpack(w, first, last, begin, end, panel)
                panel_times_tokens(
                    panel, padded, end - begin, packed, start * columns * 2 + begin * 2,
                    columns * 2, count, lanes, 1 if begin else 0, 1 if end == columns else 0,
                    scratch, 0, padded,
                )  # fmt: skip
            for t in range(min(2 * count, tokens - 2 * start)):
                token = 2 * start + t
                for row in range(first, last):
                    out[token * rows + row] = scratch[t * padded + row - first]
        restore_floats(mode)
