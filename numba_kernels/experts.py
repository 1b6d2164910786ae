"""The routed experts: tokens sorted by expert, each expert's weights read once.

The plain twin is ``laguna_ref/ops/experts.py``. Two passes over pieces of one expert's rows:
gate and up projections with their product, then down projections times the routing weight.
Pieces are dealt out by cost, so that threads finish together; which thread computes a row
cannot show in it.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.formats import placed
from numba_kernels.jit import kernel
from numba_kernels.matrix import panel_times_tokens, rows_times_vector, unpack
from numba_kernels.rows import rounded, swiglu_row
from numba_kernels.simd import load, splat, store, zeros

PIECE_ROWS = 32
TOKEN_BLOCK = 64
UNPACK_COST = 8
"""Unpacking a row of weights costs about as much as multiplying it with so many tokens."""


@njit
def sort_by_expert(ids, experts):
    """The flat (token, slot) pairs in order of expert, and where each expert's begin."""
    starts = np.zeros(experts + 1, np.int64)
    for expert in ids:
        starts[expert + 1] += 1
    starts = np.cumsum(starts)
    order = np.empty(len(ids), np.int64)
    place = starts.copy()
    for i in range(len(ids)):
        order[place[ids[i]]] = i
        place[ids[i]] += 1
    return order, starts


@njit
def deal(starts, rows, workers):
    """Pieces (expert, first row) of the experts hit, and each worker's stretch of them."""
    per_expert = (rows + PIECE_ROWS - 1) // PIECE_ROWS
    experts = len(starts) - 1
    pieces = np.empty((experts * per_expert, 2), np.int64)
    cost = np.zeros(experts * per_expert + 1, np.int64)
    n = 0
    for expert in range(experts):
        tokens = starts[expert + 1] - starts[expert]
        if tokens > 0:
            for piece in range(per_expert):
                pieces[n, 0], pieces[n, 1] = expert, piece * PIECE_ROWS
                cost[n + 1] = cost[n] + tokens + (UNPACK_COST if tokens > 1 else 0)
                n += 1
    shares = np.arange(workers + 1) * cost[n] // workers
    return pieces, np.searchsorted(cost[: n + 1], shares)


@njit
def pair_up(starts):
    """Where each expert's packed pairs begin, when an odd token is paired with zeros."""
    pairs = np.zeros(len(starts), np.int64)
    for expert in range(len(starts) - 1):
        pairs[expert + 1] = pairs[expert] + (starts[expert + 1] - starts[expert] + 1) // 2
    return pairs


@njit
def pack(x, source, columns, starts, pairs, expert, packed):
    """An expert's tokens, rows ``source[i]`` of x, as the pairs that tiles read."""
    blocks = columns // 8
    first, last = starts[expert], starts[expert + 1]
    if last - first > 1:
        for i in range(first, last + (last - first) % 2):
            t = i - first
            base = (pairs[expert] + t // 2) * blocks * 16 + (t % 2) * 8
            for block in range(blocks):
                if i < last:
                    store(packed, base + block * 16, load(x, source[i] * columns + block * 8))
                else:
                    store(packed, base + block * 16, zeros(x[0]))


@njit
def multiply(w, first, last, x, source, packed, begin, tokens, first_pair, out, stride):
    """Rows ``first`` to ``last`` times an expert's tokens: row r of token i to
    ``out[(begin + i) * stride + r]``."""
    if tokens == 1:
        start = source[begin] * w.columns
        rows_times_vector(w, first, last, x, start, out, begin * stride + first)
        return
    rows = last - first
    padded = (rows + 3) // 4 * 4
    panel = np.empty(padded * w.columns, x.dtype)
    panel[rows * w.columns :] = 0
    unpack(w, first, last, 0, w.columns, panel)
    scratch = np.empty(TOKEN_BLOCK * padded, x.dtype)
    no_lanes = np.empty(1, x.dtype)
    pair_size = w.columns * 2
    pairs = (tokens + 1) // 2
    for start in range(0, pairs, TOKEN_BLOCK // 2):
        count = min(TOKEN_BLOCK // 2, pairs - start)
        panel_times_tokens(
            panel, padded, w.columns, packed, (first_pair + start) * pair_size, pair_size,
            count, no_lanes, 0, 1, scratch, 0, padded,
        )  # fmt: skip
        for t in range(min(2 * count, tokens - 2 * start)):
            where = (begin + 2 * start + t) * stride
            for row in range(rows):
                out[where + first + row] = scratch[t * padded + row]


@kernel
def routed_experts(
    x, tokens, ids, weights, hidden, width, into, back, table, rounds, workers, out
):  # fmt: skip
    """Each token's K experts, times their routing weights, to slots of ``out``.

    x [tokens * hidden]; ids int64 and weights [tokens * K]; ``into`` is the format of gate and
    up projections [width, hidden], ``back`` that of the down projection [hidden, width]; table
    int64 [E, 3, 2] holds the addresses of gate's, up's and down's weights and scales; rounds is
    (linear, activation, product, weighted); ``workers`` the number of threads to deal to;
    ``out[(t * K + k) * stride:]`` takes slot k. Rows of x and of ``out`` are as long as those of
    the formats, which are whole vectors: ``hidden`` filled up with zeros, as is ``width``.
    """
    stride, inner = into.columns, back.columns
    top_k = len(ids) // tokens
    order, starts = sort_by_expert(ids, len(table))
    pairs = pair_up(starts)
    source = order // top_k
    itself = np.arange(len(ids))

    packed = np.empty(pairs[-1] * 2 * stride, x.dtype)
    for expert in prange(len(table)):
        pack(x, source, stride, starts, pairs, expert, packed)
    gate = np.empty(len(ids) * inner, x.dtype)
    up = np.empty(len(ids) * inner, x.dtype)
    pieces, bounds = deal(starts, width, workers)
    for worker in prange(workers):
        mode = exact_floats()
        for p in range(bounds[worker], bounds[worker + 1]):
            expert, first = pieces[p]
            last = min(first + PIECE_ROWS, width)
            begin, end = starts[expert], starts[expert + 1]
            gate_w = placed(into, table[expert, 0, 0], table[expert, 0, 1])
            up_w = placed(into, table[expert, 1, 0], table[expert, 1, 1])
            count, pair = end - begin, pairs[expert]
            multiply(gate_w, first, last, x, source, packed, begin, count, pair, gate, inner)
            multiply(up_w, first, last, x, source, packed, begin, count, pair, up, inner)
            end_of_row = inner if last == width else last
            for i in range(begin, end):
                for k in range(i * inner + last, i * inner + end_of_row):
                    gate[k] = up[k] = 0
                at = i * inner + first
                swiglu_row(gate, up, at, end_of_row - first, rounds[0], rounds[1], rounds[2])
        restore_floats(mode)

    packed = np.empty(pairs[-1] * 2 * inner, x.dtype)
    for expert in prange(len(table)):
        pack(gate, itself, inner, starts, pairs, expert, packed)
    down = np.empty(len(ids) * stride, x.dtype)
    pieces, bounds = deal(starts, hidden, workers)
    for worker in prange(workers):
        mode = exact_floats()
        for p in range(bounds[worker], bounds[worker + 1]):
            expert, first = pieces[p]
            last = min(first + PIECE_ROWS, hidden)
            begin, end = starts[expert], starts[expert + 1]
            down_w = placed(back, table[expert, 2, 0], table[expert, 2, 1])
            count, pair = end - begin, pairs[expert]
            multiply(down_w, first, last, gate, itself, packed, begin, count, pair, down, stride)
            for i in range(begin, end):
                weight = splat(weights[order[i]])
                for k in range(first, last, 8):
                    y = rounded(load(down, i * stride + k), rounds[0])
                    store(out, order[i] * stride + k, rounded(y * weight, rounds[3]))
        restore_floats(mode)
