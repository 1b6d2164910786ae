"""Products of several tokens with rows of a stored weight, by way of dequantised panels.

A panel is a few rows by a stretch of columns: small enough for a cache near the core, so that
each weight is unpacked once for many tokens and never held dequantised as a whole.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from numba_kernels.formats import (
    bytes_of,
    factor8,
    factor16,
    group_of,
    scale_at,
    weights8,
    weights16,
)
from numba_kernels.simd import CACHE_LINE, address, load, prefetch, store, zeros
from numba_kernels.target import wide_registers
from numba_kernels.tiles import tile

PANEL_ROWS, PANEL_COLUMNS = 64, 512
"""A panel of dequantised weights takes 128 KB in float32: part of a second-level cache. Eight of
its rows and three pairs of tokens, 28 KB, are what a tile reads: they fit the first level."""
FEW_ROWS, FEW_PAIRS = 8, 16
"""With few tokens the panel itself stays in the first level: it is used up at once."""
TOKEN_PAIRS = 128
"""Pairs of tokens that pass by one panel before the next stretch of columns is unpacked."""

_tile4x1, _tile8x1, _tile8x2, _tile8x3 = tile(4, 1), tile(8, 1), tile(8, 2), tile(8, 3)


@njit
def aligned(count, like):
    """An uninitialised array that begins with a cache line: no vector of it lies in two."""
    room = np.empty(count + CACHE_LINE // like.itemsize, like.dtype)
    skipped = -address(room) % CACHE_LINE // like.itemsize
    return room[skipped : skipped + count]


@njit
def unpack(w, first, last, begin, end, panel):
    """Columns ``begin`` to ``end`` of rows ``first`` to ``last``, dequantised, row by row."""
    group = group_of(w)
    groups = w.columns // group
    stride, step = bytes_of(w, w.columns), bytes_of(w, 8)
    # What is unpacked next: the same rows' next columns, after the last ones the rows below.
    ahead = bytes_of(w, end - begin)
    if end == w.columns:
        ahead = (last - first) * stride - bytes_of(w, begin)
    for row in range(first, last):
        at = (row - first) * (end - begin)
        place = w.data + row * stride + bytes_of(w, begin)
        for line in range(place + ahead, place + ahead + bytes_of(w, end - begin), CACHE_LINE):
            prefetch(line)
        for g in range(begin // group, (end + group - 1) // group):
            scale = scale_at(w, row * groups + g)
            factor = factor16(w, scale, panel)
            left = min(end, (g + 1) * group) - max(begin, g * group)
            for _ in range(left // 16):
                store(panel, at, weights16(w, place, factor, panel))
                place, at = place + 2 * step, at + 16
            if left % 16:
                store(panel, at, weights8(w, place, factor8(w, scale, panel), panel))
                place, at = place + step, at + 8


@njit
def pack_pair(x, first, second, columns, packed, pair):
    """Two tokens, at ``x[first]`` and ``x[second]``, interleaved by eight as pair number
    ``pair``: what a tile reads. With ``second`` below zero the first one is paired with zeros."""
    base = pair * columns * 2
    for column in range(0, columns, 8):
        store(packed, base + 2 * column, load(x, first + column))
        other = load(x, second + column) if second >= 0 else zeros(x[0])
        store(packed, base + 2 * column + 8, other)


@njit
def pack_neighbours(x, columns, tokens, packed, pair):
    """Pair number ``pair`` of the ``tokens`` rows of x, the last of an odd number with zeros."""
    first = 2 * pair * columns
    second = first + columns if 2 * pair + 1 < tokens else -1
    pack_pair(x, first, second, columns, packed, pair)


@njit
def pack_tokens(x, columns, tokens, packed):
    """All tokens of x as pairs."""
    for pair in range((tokens + 1) // 2):
        pack_neighbours(x, columns, tokens, packed, pair)


def tile_pairs(panel):
    """Most pairs of tokens of a tile of eight rows; 0 where registers hold four rows only."""
    raise NotImplementedError("only inside compiled code")


@overload(tile_pairs)
def _tile_pairs(panel):
    pairs = (3 if panel.dtype == types.float32 else 1) if wide_registers() else 0
    return lambda panel: pairs


@njit
def panel_times_tokens(
    panel,
    rows,
    columns,
    packed,
    begin,
    pair_size,
    pairs,
    lanes,
    resume,
    finish,
    out,
    place,
    step,
    soon,
    soon_bytes,
):
    """``rows`` (a multiple of four) of a panel times packed pairs, tile by tile.

    The panel holds ``columns`` columns; the pairs' share of them begins at ``packed[begin]``,
    one pair every ``pair_size``. For ``resume``, ``finish`` and ``lanes`` (16 numbers a pair
    and row) see ``tiles.tile``. The tokens of a tile stay in the first-level cache while the
    panel's rows pass by. Meanwhile ``soon_bytes`` a row are fetched from address ``soon`` on.
    """
    blocks = columns // 8
    widest = tile_pairs(panel)
    pair = 0
    while pair < pairs:
        count = min(pairs - pair, max(widest, 1))
        first = begin + pair * pair_size
        row = 0
        while row < rows:
            if pair == 0:
                for line in range(row * soon_bytes, (row + 8) * soon_bytes, CACHE_LINE):
                    prefetch(soon + line)
            at = row * columns
            keep = (pair * rows + row * count) * 16
            where = place + 2 * pair * step + row
            if widest == 0 or rows - row < 8:
                for p in range(count):
                    _tile4x1(
                        panel, at, columns, packed, first + p * pair_size, pair_size, blocks,
                        lanes, keep + p * 64, resume, finish, out, where + 2 * p * step, step,
                    )  # fmt: skip
                row += 4
                continue
            if count == 1:
                _tile8x1(
                    panel, at, columns, packed, first, pair_size, blocks,
                    lanes, keep, resume, finish, out, where, step,
                )  # fmt: skip
            elif count == 2:
                _tile8x2(
                    panel, at, columns, packed, first, pair_size, blocks,
                    lanes, keep, resume, finish, out, where, step,
                )  # fmt: skip
            else:
                _tile8x3(
                    panel, at, columns, packed, first, pair_size, blocks,
                    lanes, keep, resume, finish, out, where, step,
                )  # fmt: skip
            row += 8
        pair += count


@njit
def rows_times_pairs(w, first, last, packed, pairs, totals, step):
    """Rows ``first`` to ``last`` times packed pairs of tokens: row r of token t to
    ``totals[t * step + r]``; ``step`` has room for a multiple of four rows."""
    columns = w.columns
    height = FEW_ROWS if pairs <= FEW_PAIRS else PANEL_ROWS
    height = min(height, (last - first + 3) // 4 * 4)
    stretch = min(columns, PANEL_COLUMNS)
    panel = aligned(height * stretch, packed)
    lanes = aligned(1 if stretch == columns else min(pairs, TOKEN_PAIRS) * height * 16, packed)
    for low in range(first, last, height):
        high = min(low + height, last)
        rows = (high - low + 3) // 4 * 4
        for start in range(0, pairs, TOKEN_PAIRS):
            for column in range(0, columns, stretch):
                end = min(column + stretch, columns)
                unpack(w, low, high, column, end, panel)
                panel[(high - low) * (end - column) : rows * (end - column)] = 0
                panel_times_tokens(
                    panel, rows, end - column, packed, (start * columns + column) * 2,
                    columns * 2, min(TOKEN_PAIRS, pairs - start), lanes, 1 if column else 0,
                    1 if end == columns else 0, totals, 2 * start * step + low - first, step, 0, 0,
                )  # fmt: skip
