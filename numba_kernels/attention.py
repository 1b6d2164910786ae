"""Grouped-query attention straight over the cache, full or sliding.

The plain twin is ``laguna_ref/ops/attention.py``. The function is defined without reference to
chunks, rings or tiles, so none of them can show:

- a score is a sum over the head's channels, eight lanes, fixed tree;
- sums over positions are made in segments of 4,096 absolute positions, each relative to the
  greatest score in it; segments are merged in order, as in online softmax;
- in a segment, the sum of exponentials takes the key at absolute position j into lane
  ``j mod 8``, in order;
- in a segment, the weighted sum of values runs over blocks of 64 absolute positions, in order,
  each block summed by itself in order of position; a key that is not visible has weight exactly
  zero (the cache holds nothing that is not finite);
- the weighted sum is divided by that of the exponentials at the end.

Where probabilities are rounded (bfloat16 numerics) there is one maximum, over all visible keys,
and the weights are probabilities, divided and rounded one by one; segments' sums are added.

Scores are kept for one tile of queries and one segment (in bfloat16 all of its positions), never
for all queries. Many queries are dealt to the threads as tiles; few that see a long context as
segments of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from numba_kernels import vector_math
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
from numba_kernels.simd import lane, load, splat, store

SEGMENT = 4096
"""Positions whose sums are made by themselves; several threads may share out the segments."""
SPREAD = 16
"""Numbers left between two queries' scores, lest all of them fall on one set of a cache."""
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
def put(values, sums, normalised, places, width, round_output, out):
    """Each query's weighted values to its place, over its ``sums`` if not yet ``normalised``."""
    for i in range(len(places)):
        whole = splat(sums[i])
        for c in range(0, width, 8):
            v = load(values, i * width + c)
            store(out, places[i] + c, rounded(v if normalised else v / whole, round_output))


@njit
def merge(tops, sums, values, segment_tops, segment_sums, segment_values, width):
    """A segment's sums to those of the segments before it, both relative to one maximum."""
    for i in range(len(tops)):
        if segment_sums[i] == 0:  # nothing seen: not even a rounding may show
            continue
        if not segment_tops[i] > -np.inf:  # scores that are no numbers, whose maximum means nothing
            sums[i] = np.nan
            continue
        top = max(tops[i], segment_tops[i])
        before = vector_math.exp(splat(tops[i] - top))
        now = vector_math.exp(splat(segment_tops[i] - top))
        tops[i] = top
        sums[i] = sums[i] * lane(before, 0) + segment_sums[i] * lane(now, 0)
        for c in range(i * width, (i + 1) * width, 8):
            store(values, c, load(values, c) * before + load(segment_values, c) * now)


@njit
def online(packed, lows, highs, k, v, low, high, width, scaling, rounds, tops, sums, values):
    """One segment after the other: its scores are gone before the next one's are made.

    ``tops`` (minus infinity), ``sums`` and ``values`` (zeros) take the result.
    """
    queries = len(lows)
    span = min(SEGMENT, high - low + 2 * BLOCK) + SPREAD
    scores = np.empty(even(queries) * span, packed.dtype)
    for segment in range(low // SEGMENT, (high - 1) // SEGMENT + 1):
        first, last = bounds(segment, low, high)
        begin = first // BLOCK * BLOCK
        own_tops, own_sums = np.full_like(tops, -np.inf), np.zeros_like(sums)
        own_values = np.zeros_like(values)
        find_scores(
            packed, lows, highs, k, first, last, width, scaling, rounds, scores, begin, span,
            own_tops,
        )  # fmt: skip
        find_exponentials(lows, highs, first, last, scores, begin, span, own_tops, own_sums)
        add_values(v, first, last, width, False, rounds, scores, begin, span, own_sums, own_values)
        merge(tops, sums, values, own_tops, own_sums, own_values, width)


@njit
def in_passes(packed, lows, highs, k, v, low, high, width, scaling, rounds, tops, sums, values):
    """All scores, then all exponentials and their sum, then probabilities and values.

    What rounding probabilities takes: each needs the sum of all. The segments' sums are added.
    """
    begin = low // BLOCK * BLOCK
    span = (high - begin + BLOCK - 1) // BLOCK * BLOCK + SPREAD
    scores = np.empty(even(len(lows)) * span, packed.dtype)
    find_scores(
        packed, lows, highs, k, low, high, width, scaling, rounds, scores, begin, span, tops
    )
    segments = range(low // SEGMENT, (high - 1) // SEGMENT + 1)
    for segment in segments:
        first, last = bounds(segment, low, high)
        find_exponentials(lows, highs, first, last, scores, begin, span, tops, sums)
    for segment in segments:
        first, last = bounds(segment, low, high)
        own_values = np.zeros_like(values)
        add_values(v, first, last, width, True, rounds, scores, begin, span, sums, own_values)
        values += own_values


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
        tops = np.full(len(places), -np.inf, q.dtype)
        sums = np.zeros(len(places), q.dtype)
        whole = np.zeros(even(len(places)) * width, q.dtype)
        k = head_of(keys, g, base, k_scale, rounds[0])
        v = head_of(values, g, base, v_scale, rounds[0])
        if rounds[3]:
            in_passes(
                packed, lows, highs, k, v, lows[0], highs[-1], width, scaling, rounds,
                tops, sums, whole,
            )  # fmt: skip
        else:
            online(
                packed, lows, highs, k, v, lows[0], highs[-1], width, scaling, rounds,
                tops, sums, whole,
            )  # fmt: skip
        put(whole, sums, rounds[3], places, width, rounds[4], out)
        restore_floats(mode)


@kernel
def of_segments(
    q, tokens, heads, keys, values, base, first_query, window, kv_heads, width, scaling,
    k_scale, v_scale, rounds, out,
):  # fmt: skip
    """A single tile of tokens: segments of every key/value head, dealt to the threads.

    For numerics that do not round probabilities.
    """
    group = heads // kv_heads
    queries = tokens * group
    high = first_query + tokens
    low = max(base, first_query + 1 - window) if window > 0 else base
    segment0 = low // SEGMENT
    segments = (high - 1) // SEGMENT + 1 - segment0
    tops = np.full((kv_heads, segments, queries), -np.inf, q.dtype)
    sums = np.zeros((kv_heads, segments, queries), q.dtype)
    parts = np.zeros((kv_heads, segments, even(queries) * width), q.dtype)
    for unit in prange(kv_heads * segments):
        mode = exact_floats()
        g, segment = unit // segments, unit % segments
        packed, _, lows, highs = tile_of_queries(
            q, 0, tokens, g, group, heads, width, base, first_query, window
        )
        first, last = bounds(segment0 + segment, low, high)
        k = head_of(keys, g, base, k_scale, rounds[0])
        v = head_of(values, g, base, v_scale, rounds[0])
        online(
            packed, lows, highs, k, v, first, last, width, scaling, rounds,
            tops[g, segment], sums[g, segment], parts[g, segment],
        )  # fmt: skip
        restore_floats(mode)
    mode = exact_floats()
    for g in range(kv_heads):
        _, places, _, _ = tile_of_queries(
            q, 0, tokens, g, group, heads, width, base, first_query, window
        )
        for segment in range(1, segments):
            merge(
                tops[g, 0], sums[g, 0], parts[g, 0],
                tops[g, segment], sums[g, segment], parts[g, segment], width,
            )  # fmt: skip
        put(parts[g, 0], sums[g, 0], False, places, width, rounds[4], out)
    restore_floats(mode)


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
    seen = first_query + tokens - low
    if window > 0:
        seen = min(seen, window + tokens)
    in_passes = rounds[3]
    kept = seen + 2 * BLOCK if in_passes else min(seen, SEGMENT)
    tile = max(1, min(tokens, MAX_QUERIES // group, TILE_SCORES // (group * kept)))
    if tile == tokens and seen > SEGMENT and not in_passes:
        of_segments(
            q, tokens, heads, keys, values, base, first_query, window, kv_heads, width, scaling,
            k_scale, v_scale, rounds, out, work=work,
        )  # fmt: skip
        return
    of_tiles(
        q, tokens, tile, heads, keys, values, base, first_query, window, kv_heads, width, scaling,
        k_scale, v_scale, rounds, out, work=work,
    )  # fmt: skip
