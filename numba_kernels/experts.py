"""The routed experts: tokens sorted by expert, each expert's weights read once.

The plain twin is ``laguna_ref/ops/experts.py``. Two passes over pieces of one expert's rows:
gate and up projections with their product, then down projections times the routing weight.
Pieces are dealt out by cost, so that threads finish together; which thread computes a row
cannot show in it.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from numba_kernels.dots import rows_times_vector
from numba_kernels.float_mode import exact_floats, restore_floats
from numba_kernels.formats import placed
from numba_kernels.jit import kernel
from numba_kernels.panels import aligned, pack_pair, rows_times_pairs
from numba_kernels.rows import rounded, swiglu_row
from numba_kernels.simd import load, splat, store

PIECE_ROWS = 64
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
def pack(x, source, columns, packed):
    """Tokens, rows ``source`` of x, as the pairs that tiles read; a single one is left alone."""
    count = len(source)
    if count == 1:
        return
    for first in range(0, count, 2):
        second = source[first + 1] * columns if first + 1 < count else -1
        pack_pair(x, source[first] * columns, second, columns, packed, first // 2)


@njit
def multiply(w, first, last, x, source, packed, totals, step):
    """Rows ``first`` to ``last`` times an expert's tokens: row r of token t to
    ``totals[t * step + r]``."""
    if len(source) == 1:
        rows_times_vector(w, first, last, x, source[0] * w.columns, totals, 0)
    else:
        pairs = (len(source) + 1) // 2
        rows_times_pairs(w, first, last, packed, pairs, totals, step)


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
    order, starts = sort_by_expert(ids, len(table))
    source = order // (len(ids) // tokens)
    most = (starts[1:] - starts[:-1]).max() + 1

    gated = np.empty(len(ids) * inner, x.dtype)
    pieces, bounds = deal(starts, width, workers)
    for worker in prange(workers):
        mode = exact_floats()
        packed = aligned(most * stride, x)
        gate, up = aligned(most * PIECE_ROWS, x), aligned(most * PIECE_ROWS, x)
        packed_expert = -1
        for p in range(bounds[worker], bounds[worker + 1]):
            expert, first = pieces[p]
            last = min(first + PIECE_ROWS, width)
            its = source[starts[expert] : starts[expert + 1]]
            if expert != packed_expert:
                pack(x, its, stride, packed)
                packed_expert = expert
            gate_w = placed(into, table[expert, 0, 0], table[expert, 0, 1])
            up_w = placed(into, table[expert, 1, 0], table[expert, 1, 1])
            multiply(gate_w, first, last, x, its, packed, gate, PIECE_ROWS)
            multiply(up_w, first, last, x, its, packed, up, PIECE_ROWS)
            end = inner if last == width else last
            for i in range(len(its)):
                at, target = i * PIECE_ROWS, (starts[expert] + i) * inner
                gate[at + last - first : at + end - first] = 0
                up[at + last - first : at + end - first] = 0
                swiglu_row(gate, up, at, end - first, rounds[0], rounds[1], rounds[2])
                gated[target + first : target + end] = gate[at : at + end - first]
        restore_floats(mode)

    itself = np.arange(len(ids))
    pieces, bounds = deal(starts, hidden, workers)
    for worker in prange(workers):
        mode = exact_floats()
        packed = aligned(most * inner, x)
        down = aligned(most * PIECE_ROWS, x)
        packed_expert = -1
        for p in range(bounds[worker], bounds[worker + 1]):
            expert, first = pieces[p]
            last = min(first + PIECE_ROWS, hidden)
            its = itself[starts[expert] : starts[expert + 1]]
            if expert != packed_expert:
                pack(gated, its, inner, packed)
                packed_expert = expert
            down_w = placed(back, table[expert, 2, 0], table[expert, 2, 1])
            multiply(down_w, first, last, gated, its, packed, down, PIECE_ROWS)
            for i in range(len(its)):
                slot = order[its[i]]
                weight = splat(weights[slot])
                for k in range(0, last - first, 8):
                    y = rounded(load(down, i * PIECE_ROWS + k), rounds[0])
                    store(out, slot * stride + first + k, rounded(y * weight, rounds[3]))
        restore_floats(mode)
