"""Grouped-query attention straight over the cache, full or sliding.

The plain twin is ``laguna_ref/ops/attention.py``. The function is defined without reference to
chunks, rings or tiles, so none of them can show:

- a score is a sum over the head's channels, eight lanes, fixed tree;
- the maximum is over all visible keys (a maximum has no order);
- the sum of exponentials takes the key at absolute position j into lane ``j mod 8``, in order;
- the weighted sum of values runs over blocks of 64 absolute positions, in order, each block
  summed by itself in order of position; a key that is not visible has probability exactly
  zero and its value is not read.

Scores of one tile of queries are kept (never those of all queries), so one pass finds the
maximum and the next the sum: what bfloat16 numerics demand serves all three.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from numba_kernels import vector_math
from numba_kernels.cached import cached8
from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.jit import kernel
from numba_kernels.panels import pack_tokens, panel_times_tokens
from numba_kernels.rows import rounded
from numba_kernels.simd import (
    address,
    greatest,
    load,
    maximum,
    number,
    prefetch,
    splat,
    store,
    total,
    zeros,
)  # fmt: skip
from numba_kernels.tiles import outer_tile

BLOCK = 64
"""Positions summed by themselves in the weighted sum of values."""
AHEAD = 24
"""Positions fetched ahead of the one that is read."""
TILE_SCORES = 1 << 18
"""Scores a thread keeps at a time."""
MAX_QUERIES = 64
"""Query rows of a tile: their packed channels and sums stay in the first-level cache."""

_wide, _narrow = outer_tile(4, 16), outer_tile(1, 8)


@njit
def decode_rows(stored, first, last, base, kv_heads, g, width, scale, round_read, out):
    """Cached positions ``first`` to ``last`` of one head as rows of ``width`` numbers."""
    for position in range(first, last):
        source = ((position - base) * kv_heads + g) * width
        target = (position - first) * width
        # Heads of one token lie side by side: rows of one head are too far apart for the
        # processor to see that they follow each other.
        ahead = address(stored) + (source + AHEAD * kv_heads * width) * stored.itemsize
        for line in range(0, width * stored.itemsize, 64):
            prefetch(ahead + line)
        for c in range(0, width, 8):
            store(out, target + c, cached8(stored, source + c, scale, round_read, out))


@njit
def add_weighted_values(p, at, step, queries, values, count, width, out):
    """Adds a block's weighted values to each query's sum; ``queries`` is a multiple of four."""
    for q in range(0, queries, 4):
        c = 0
        while c + 64 <= width:
            _wide(p, at + q * step, step, values, c, width, count, out, q * width + c, width)
            c += 64
        while c < width:
            _narrow(p, at + q * step, step, values, c, width, count, out, q * width + c, width)
            c += 8


@njit
def attend(
    q, queries, places, lows, highs, keys, values, base, kv_heads, g, width, scaling,
    k_scale, v_scale, rounds, out,
):  # fmt: skip
    """Attention of one tile of queries over one key/value head.

    q: packed pairs of queries; ``places[i]`` is where query i's result goes in ``out``; it sees
    absolute positions ``lows[i]`` to ``highs[i]`` (exclusive). Rounds: (read, scores, scaled,
    probabilities, output).
    """
    low, high = lows[0], highs[0]
    for i in range(queries):
        low, high = min(low, lows[i]), max(high, highs[i])
    begin = low // BLOCK * BLOCK
    span = (high - begin + BLOCK - 1) // BLOCK * BLOCK
    padded = (queries + 3) // 4 * 4
    scores = np.empty(padded * span, q.dtype)
    scores[queries * span :] = 0
    panel = np.zeros(BLOCK * width, q.dtype)
    no_lanes = np.empty(1, q.dtype)
    for block in range(begin, high, BLOCK):
        first, last = max(block, low), min(block + BLOCK, high)
        start = (first - block) // 4 * 4
        decode_rows(
            keys, first, last, base, kv_heads, g, width, k_scale, rounds[0],
            panel[(first - block) * width :],
        )  # fmt: skip
        rows = (last - block + 3) // 4 * 4 - start
        panel_times_tokens(
            panel[start * width :], rows, width, q, 0, 2 * width, (queries + 1) // 2,
            no_lanes, 0, 1, scores, block - begin + start, span,
        )  # fmt: skip

    for i in range(queries):
        at = i * span
        scale = splat(scaling)
        tops = number(scale, -np.inf)
        lo, hi = lows[i] - begin, highs[i] - begin
        for j in range(lo // 8 * 8, hi, 8):
            v = rounded(rounded(load(scores, at + j), rounds[1]) * scale, rounds[2])
            store(scores, at + j, v)
        scores[at : at + lo] = -np.inf
        scores[at + hi : at + span] = -np.inf
        for j in range(lo // 8 * 8, hi, 8):
            tops = maximum(tops, load(scores, at + j))
        top = splat(greatest(tops))
        sums = zeros(scale)
        for j in range(lo // 8 * 8, hi, 8):
            e = vector_math.exp(load(scores, at + j) - top)
            sums = sums + e
            store(scores, at + j, e)
        scores[at : at + lo // 8 * 8] = 0
        scores[at + (hi + 7) // 8 * 8 : at + span] = 0
        whole = splat(total(sums))
        for j in range(lo // 8 * 8, hi, 8):
            store(scores, at + j, rounded(load(scores, at + j) / whole, rounds[3]))

    sums = np.zeros(padded * width, q.dtype)
    for block in range(begin, high, BLOCK):
        first, last = max(block, low), min(block + BLOCK, high)
        decode_rows(values, first, last, base, kv_heads, g, width, v_scale, rounds[0], panel)
        add_weighted_values(scores, first - begin, span, padded, panel, last - first, width, sums)
    for i in range(queries):
        for c in range(0, width, 8):
            store(out, places[i] + c, rounded(load(sums, i * width + c), rounds[4]))


@kernel
def attention(
    q, tokens, heads, keys, values, base, first_query, window, kv_heads, width, scaling,
    k_scale, v_scale, rounds, out,
):  # fmt: skip
    """q [tokens, heads, width] over cached keys and values [S, kv_heads, width], all flat.

    ``base`` is the absolute position of the first cached row, ``first_query`` that of the first
    query; ``window`` 0 means none. Rounds: (read, scores, scaled, probabilities, output).
    """
    group = heads // kv_heads
    span = first_query + tokens - base + 2 * BLOCK
    if window > 0:
        span = min(span, window + tokens + 2 * BLOCK)
    tile = max(1, min(tokens, MAX_QUERIES // group, TILE_SCORES // (group * span)))
    tiles = (tokens + tile - 1) // tile
    for unit in prange(kv_heads * tiles):
        mode = exact_floats()
        g, turn = unit % kv_heads, unit // kv_heads
        # Early and late tiles in turn: under a causal mask the late ones take longer.
        t0 = (turn // 2 if turn % 2 == 0 else tiles - 1 - turn // 2) * tile
        t1 = min(t0 + tile, tokens)
        queries = (t1 - t0) * group
        lows = np.empty(queries, np.int64)
        highs = np.empty(queries, np.int64)
        places = np.empty(queries, np.int64)
        gathered = np.empty(queries * width, q.dtype)
        for t in range(t0, t1):
            for h in range(group):
                i = (t - t0) * group + h
                place = (t * heads + g * group + h) * width
                position = first_query + t
                places[i], highs[i] = place, position + 1
                lows[i] = max(base, position + 1 - window) if window > 0 else base
                gathered[i * width : (i + 1) * width] = q[place : place + width]
        packed = np.empty((queries + 1) // 2 * 2 * width, q.dtype)
        pack_tokens(gathered, width, queries, packed)
        attend(
            packed, queries, places, lows, highs, keys, values, base, kv_heads, g, width,
            scaling, k_scale, v_scale, rounds, out,
        )  # fmt: skip
        restore_floats(mode)
