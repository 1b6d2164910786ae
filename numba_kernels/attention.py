"""Grouped-query attention straight over the cache, full or sliding.

The plain twin is ``laguna_ref/ops/attention.py``. The function is defined without reference to
chunks, rings or tiles, so none of them can show:

- a score is a sum over the head's channels, eight lanes, fixed tree;
- the maximum is over all visible keys (a maximum has no order);
- sums over positions are made in segments of 4,096 absolute positions, which are then added in
  order;
- in a segment, the sum of exponentials takes the key at absolute position j into lane
  ``j mod 8``, in order;
- in a segment, the weighted sum of values runs over blocks of 64 absolute positions, in order,
  each block summed by itself in order of position; a key that is not visible has weight exactly
  zero and its value is not read;
- weights are exponentials, and the sum is divided by theirs at the end; where probabilities are
  rounded (bfloat16 numerics) weights are these, divided and rounded one by one.

Scores of one tile of queries are kept (never those of all queries), so one pass finds the
maximum and the next the sum. Many queries are dealt to the threads as tiles; few that see a long
context as segments of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from numba_kernels.attention_steps import (
    BLOCK,
    add_values,
    even,
    find_exponentials,
    find_scores,
)
from numba_kernels.cached import Head
from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.jit import kernel
from numba_kernels.panels import pack_tokens
from numba_kernels.rows import rounded
from numba_kernels.simd import load, splat, store

SEGMENT = 4096
"""Positions whose sums are made by themselves; several threads may share out the segments."""
SPREAD = 16
"""Numbers left between two queries' scores, lest all of them fall on one set of a cache."""
SPAN = SEGMENT + SPREAD
TILE_SCORES = 1 << 18
"""Scores a thread keeps at a time."""
MAX_QUERIES = 64
"""Query rows of a tile: their packed channels and sums stay in the first-level cache."""


@njit
def tile_of_queries(q, t0, t1, g, group, heads, width, base, first_query, window):
    """The queries of tokens ``t0`` to ``t1`` that read key/value head ``g``.

    Packed in pairs; where each one's result goes; and the positions it sees, from ``lows`` to
    ``highs`` (exclusive).
    """
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
    packed = np.empty(even(queries) * width, q.dtype)
    pack_tokens(gathered, width, queries, packed)
    return packed, places, lows, highs


@njit
def head_of(stored, g, base, scale, round_read):
    """Head ``g`` of (memory, numbers from row to row, numbers from head to head)."""
    memory, step, head_step = stored
    return Head(memory, g * head_step - base * step, step, scale, round_read)


@njit
def bounds(segment, low, high):
    """What a segment has of positions ``low`` to ``high``."""
    return max(low, segment * SEGMENT), min(high, (segment + 1) * SEGMENT)


@njit
def add_to(whole, part):
    """A segment's sums to those of the segments before it."""
    for k in range(len(whole)):
        whole[k] += part[k]


@njit
def in_order(parts):
    """The segments' sums, added in order."""
    whole = np.zeros_like(parts[0])
    for part in parts:
        add_to(whole, part)
    return whole


@njit
def highest(tops):
    """The greatest of all segments."""
    result = tops[0].copy()
    for top in tops:
        for i in range(len(result)):
            result[i] = max(result[i], top[i])
    return result


@njit
def put(values, sums, normalised, places, width, round_output, out):
    """Each query's weighted values to its place, over its ``sums`` if not yet ``normalised``."""
    for i in range(len(places)):
        whole = splat(sums[i])
        for c in range(0, width, 8):
            v = load(values, i * width + c)
            store(out, places[i] + c, rounded(v if normalised else v / whole, round_output))


@kernel
def of_tiles(
    q, tokens, tile, heads, keys, values, base, first_query, window, kv_heads, width, scaling,
    k_scale, v_scale, rounds, out,
):  # fmt: skip
    """Tiles of ``tile`` tokens and one key/value head each, dealt to the threads."""
    group = heads // kv_heads
    tiles = (tokens + tile - 1) // tile
    for unit in prange(kv_heads * tiles):
        mode = exact_floats()
        g, turn = unit % kv_heads, unit // kv_heads
        # Early and late tiles in turn: under a causal mask the late ones take longer.
        t0 = (turn // 2 if turn % 2 == 0 else tiles - 1 - turn // 2) * tile
        t1 = min(t0 + tile, tokens)
        packed, places, lows, highs = tile_of_queries(
            q, t0, t1, g, group, heads, width, base, first_query, window
        )
        queries, low, high = len(places), lows[0], highs[-1]
        begin = low // BLOCK * BLOCK
        span = (high - begin + BLOCK - 1) // BLOCK * BLOCK + SPREAD
        scores = np.empty(even(queries) * span, q.dtype)
        tops = np.full(queries, -np.inf, q.dtype)
        sums = np.zeros(queries, q.dtype)
        whole = np.zeros(even(queries) * width, q.dtype)
        k = head_of(keys, g, base, k_scale, rounds[0])
        v = head_of(values, g, base, v_scale, rounds[0])
        find_scores(
            packed, lows, highs, k, low, high, width, scaling, rounds, scores, begin, span, tops
        )
        for segment in range(low // SEGMENT, (high - 1) // SEGMENT + 1):
            first, last = bounds(segment, low, high)
            find_exponentials(lows, highs, first, last, scores, begin, span, tops, sums)
        for segment in range(low // SEGMENT, (high - 1) // SEGMENT + 1):
            first, last = bounds(segment, low, high)
            part = np.zeros(len(whole), q.dtype)
            add_values(v, first, last, width, rounds[3], rounds, scores, begin, span, sums, part)
            add_to(whole, part)
        put(whole, sums, rounds[3], places, width, rounds[4], out)
        restore_floats(mode)


@kernel
def of_segments(
    q, tokens, heads, keys, values, base, first_query, window, kv_heads, width, scaling,
    k_scale, v_scale, rounds, scores, segment0, out,
):  # fmt: skip
    """A single tile of tokens: segments of every key/value head, dealt to the threads.

    scores [kv_heads, segments, even(queries) * SPAN]. Where probabilities are rounded, a segment
    has to wait for all others' sums before it can weigh its values.
    """
    group = heads // kv_heads
    queries = tokens * group
    high = first_query + tokens
    low = max(base, first_query + 1 - window) if window > 0 else base
    segments = scores.shape[1]
    tops = np.full((kv_heads, segments, queries), -np.inf, q.dtype)
    sums = np.zeros((kv_heads, segments, queries), q.dtype)
    parts = np.zeros((kv_heads, segments, even(queries) * width), q.dtype)
    normalised = rounds[3]
    for unit in prange(kv_heads * segments):
        mode = exact_floats()
        g, segment = unit // segments, unit % segments
        packed, _, lows, highs = tile_of_queries(
            q, 0, tokens, g, group, heads, width, base, first_query, window
        )
        first, last = bounds(segment0 + segment, low, high)
        head = head_of(keys, g, base, k_scale, rounds[0])
        find_scores(
            packed, lows, highs, head, first, last, width, scaling, rounds,
            scores[g, segment], (segment0 + segment) * SEGMENT, SPAN, tops[g, segment],
        )  # fmt: skip
        restore_floats(mode)
    for unit in prange(kv_heads * segments):
        mode = exact_floats()
        g, segment = unit // segments, unit % segments
        _, _, lows, highs = tile_of_queries(
            q, 0, tokens, g, group, heads, width, base, first_query, window
        )
        first, last = bounds(segment0 + segment, low, high)
        begin = (segment0 + segment) * SEGMENT
        find_exponentials(
            lows, highs, first, last, scores[g, segment], begin, SPAN, highest(tops[g]),
            sums[g, segment],
        )  # fmt: skip
        if not normalised:
            head = head_of(values, g, base, v_scale, rounds[0])
            add_values(
                head, first, last, width, False, rounds, scores[g, segment], begin, SPAN,
                sums[g, segment], parts[g, segment],
            )  # fmt: skip
        restore_floats(mode)
    for unit in prange(kv_heads * segments if normalised else 0):
        mode = exact_floats()
        g, segment = unit // segments, unit % segments
        first, last = bounds(segment0 + segment, low, high)
        head = head_of(values, g, base, v_scale, rounds[0])
        add_values(
            head, first, last, width, True, rounds, scores[g, segment],
            (segment0 + segment) * SEGMENT, SPAN, in_order(sums[g]), parts[g, segment],
        )  # fmt: skip
        restore_floats(mode)
    for g in range(kv_heads):
        _, places, _, _ = tile_of_queries(
            q, 0, tokens, g, group, heads, width, base, first_query, window
        )
        put(in_order(parts[g]), in_order(sums[g]), normalised, places, width, rounds[4], out)


def attention(
    q: Any, tokens: int, heads: int, keys: Any, values: Any, base: int, first_query: int,
    window: int, kv_heads: int, width: int, scaling: Any, k_scale: Any, v_scale: Any,
    rounds: Any, out: Any, work: int,
) -> None:  # fmt: skip
    """q [tokens, heads, width], flat, over cached keys and values.

    keys, values: each (flat memory, numbers from row to row, numbers from head to head);
    ``base`` is the absolute position of the first cached row, ``first_query`` that of the first
    query; ``window`` 0 means none. Rounds: (read, scores, scaled, probabilities, output).
    """
    group = heads // kv_heads
    low = max(base, first_query + 1 - window) if window > 0 else base
    begin = low // BLOCK * BLOCK
    span = (first_query + tokens - begin + BLOCK - 1) // BLOCK * BLOCK
    seen = min(span, window + tokens + 2 * BLOCK) if window > 0 else span
    tile = max(1, min(tokens, MAX_QUERIES // group, TILE_SCORES // (group * seen)))
    if tile == tokens and span > SEGMENT:
        first, last = low // SEGMENT, (first_query + tokens - 1) // SEGMENT
        # NumPy asks the system for large pages; a kernel's own allocation would not.
        scores = np.empty(
            (kv_heads, last + 1 - first, (tokens * group + 1) // 2 * 2 * SPAN), q.dtype
        )
        of_segments(
            q, tokens, heads, keys, values, base, first_query, window, kv_heads, width, scaling,
            k_scale, v_scale, rounds, scores, first, out, work=work,
        )  # fmt: skip
        return
    of_tiles(
        q, tokens, tile, heads, keys, values, base, first_query, window, kv_heads, width, scaling,
        k_scale, v_scale, rounds, out, work=work,
    )  # fmt: skip
