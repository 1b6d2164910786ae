"""Products of tokens with a stored weight: matrix times vector, matrix times matrix.

The plain twin is ``laguna_ref/ops/linear.py``. The weight is never held dequantised as a whole:
one token streams it through registers, several share a panel of rows that fits the cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.formats import group_of, scale_at, weights8
from numba_kernels.jit import kernel
from numba_kernels.simd import fma, load, store, total, zeros
from numba_kernels.tiles import ROWS, tile

MAX_PAIRS = 4
PANEL_ROWS = 16
TOKEN_BLOCK = 64
"""Tokens whose packed activations stay in the second-level cache while rows pass by."""

_tile1, _tile2, _tile3, _tile4 = tile(1), tile(2), tile(3), tile(4)


@njit
def dot4(w, row, x, start):
    """Products of four rows with one token, the token's columns from ``start`` on."""
    a, b, c, d = zeros(x[0]), zeros(x[0]), zeros(x[0]), zeros(x[0])
    group = group_of(w)
    for first in range(0, w.columns, group):
        s0, s1 = scale_at(w, row, first), scale_at(w, row + 1, first)
        s2, s3 = scale_at(w, row + 2, first), scale_at(w, row + 3, first)
        for column in range(first, first + group, 8):
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
    for first in range(0, w.columns, group):
        scale = scale_at(w, row, first)
        for column in range(first, first + group, 8):
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
def unpack_rows(w, first, last, panel):
    """Rows ``first`` to ``last`` dequantised into ``panel``, one after another."""
    group = group_of(w)
    for row in range(first, last):
        at = (row - first) * w.columns
        for start in range(0, w.columns, group):
            scale = scale_at(w, row, start)
            for column in range(start, start + group, 8):
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
def panel_times_tokens(panel, rows, columns, packed, first_pair, pairs, out, place, step):
    """``rows`` (a multiple of four) of a panel times packed pairs, tile by tile."""
    blocks = columns // 8
    for row in range(0, rows, 4):
        at = row * columns
        pair = 0
        while pair < pairs:
            first = (first_pair + pair) * blocks * 16
            where = place + 2 * pair * step + row
            left = pairs - pair
            if left >= 4:
                _tile4(panel, at, columns, packed, first, blocks, out, where, step)
                pair += 4
            elif left == 3:
                _tile3(panel, at, columns, packed, first, blocks, out, where, step)
                pair += 3
            elif left == 2:
                _tile2(panel, at, columns, packed, first, blocks, out, where, step)
                pair += 2
            else:
                _tile1(panel, at, columns, packed, first, blocks, out, where, step)
                pair += 1


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
    block_pairs = TOKEN_BLOCK // 2
    for p in prange(panels):
        mode = exact_floats()
        first, last = p * PANEL_ROWS, min(rows, (p + 1) * PANEL_ROWS)
        padded = (last - first + ROWS - 1) // ROWS * ROWS
        panel = np.empty(padded * columns, x.dtype)
        panel[(last - first) * columns :] = 0
        unpack_rows(w, first, last, panel)
        scratch = np.empty(2 * block_pairs * padded, x.dtype)
        for start in range(0, pairs, block_pairs):
            count = min(block_pairs, pairs - start)
            panel_times_tokens(panel, padded, columns, packed, start, count, scratch, 0, padded)
            for t in range(min(2 * count, tokens - 2 * start)):
                token = 2 * start + t
                for row in range(first, last):
                    out[token * rows + row] = scratch[t * padded + row - first]
        restore_floats(mode)
