"""The three steps of attention, for one tile of queries and one stretch of positions.

Scores and their maximum; exponentials and their sum; weighted values. A tile's scores are kept
from step to step: query i's score of position p is ``scores[i * span + p - begin]``. ``lows[i]``
to ``highs[i]`` (exclusive) are the positions that query i sees; ``first`` and ``last`` bound a
stretch, which begins at a multiple of BLOCK or before all that any query sees. A row for an odd
query's missing partner is computed along and means nothing.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels import vector_math
from numba_kernels.cached import decode_rows, place_of, row_bytes
from numba_kernels.panels import aligned, panel_times_tokens
from numba_kernels.rows import rounded
from numba_kernels.simd import (
    both,
    greatest,
    high_half,
    load,
    low_half,
    maximum,
    number,
    pair,
    splat,
    store,
    total,
    zeros,
)
from numba_kernels.weighted_sums import add_weighted_sums

BLOCK = 64
"""Positions summed by themselves in the weighted sum of values."""
KEYS = 64
"""Decoded keys that stay in the first-level cache beside a full tile of queries."""


@njit
def even(queries):
    """Rows that a tile of queries takes: they are worked on in pairs."""
    return (queries + 1) // 2 * 2


@njit
def find_scores(
    q, lows, highs, keys, first, last, width, scaling, rounds, scores, begin, span, tops
):
    """Scores of positions ``first`` to ``last``; ``tops`` takes the greatest of each query's.

    q: packed pairs of queries. Scores of eight positions that share a vector with a visible one
    are set to minus infinity where they are not visible themselves.
    """
    queries = len(lows)
    pairs = even(queries) // 2
    panel = aligned(KEYS * width, q)
    panel[:] = 0
    none = panel[:0]
    for block in range(first // KEYS * KEYS, last, KEYS):
        start, stop = max(block, first), min(block + KEYS, last)
        decode_rows(keys, start, stop, width, panel[(start - block) * width :])
        row = (start - block) // 4 * 4
        rows = (stop - block + 3) // 4 * 4 - row
        panel_times_tokens(
            panel[row * width :], rows, width, q, 0, 2 * width, pairs,
            none, 0, 1, scores, block - begin + row, span, place_of(keys, stop), row_bytes(keys),
        )  # fmt: skip
    scale = splat(scaling)
    for i in range(queries):
        low, high = max(lows[i], first), min(highs[i], last)
        at = i * span - begin
        v = number(scale, -np.inf)
        if low < high:
            scores[at + low // 8 * 8 : at + low] = -np.inf
            scores[at + high : at + (high + 7) // 8 * 8] = -np.inf
        for p in range(low // 8 * 8, high, 8):
            score = rounded(rounded(load(scores, at + p), rounds[1]) * scale, rounds[2])
            store(scores, at + p, score)
            v = maximum(v, score)
        tops[i] = max(tops[i], greatest(v))


@njit
def find_exponentials(lows, highs, first, last, scores, begin, span, tops, sums):
    """Exponentials of scores less ``tops``, in place; each query's sum is added to ``sums``.

    What a query does not see becomes zero.
    """
    for i in range(len(lows)):
        low, high = max(lows[i], first), min(highs[i], last)
        at = i * span - begin
        if low >= high:
            scores[at + first : at + last] = 0
            continue
        start, stop = low // 8 * 8, (high + 7) // 8 * 8
        scores[at + first : at + start] = 0
        # Where there is no maximum, scores of minus infinity still come to zero.
        top = splat(tops[i] if tops[i] > -np.inf else scores.dtype.type(0))
        lanes = zeros(top)
        both_tops, many = both(top), start + (stop - start) // 16 * 16
        for p in range(start, many, 16):
            e = vector_math.exp(pair(load(scores, at + p), load(scores, at + p + 8)) - both_tops)
            lanes = lanes + low_half(e) + high_half(e)
            store(scores, at + p, e)
        if many < stop:
            e = vector_math.exp(load(scores, at + many) - top)
            lanes = lanes + e
            store(scores, at + many, e)
        scores[at + stop : at + last] = 0
        sums[i] += total(lanes)


@njit
def add_values(values, first, last, width, normalised, rounds, scores, begin, span, sums, out):
    """Adds the weighted values of positions ``first`` to ``last`` to each query's ``out``.

    Weights are the exponentials, or probabilities if they are to be ``normalised``: divided by
    ``sums`` and rounded.
    """
    queries = len(sums)
    panel = aligned(BLOCK * width, out)
    weights = np.zeros(even(queries) * BLOCK if normalised else 1, out.dtype)
    for block in range(first // BLOCK * BLOCK, last, BLOCK):
        start, stop = max(block, first), min(block + BLOCK, last)
        decode_rows(values, start, stop, width, panel)
        soon = place_of(values, stop)
        if normalised:
            divide(scores, start, stop, begin, span, sums, rounds[3], weights, block)
            add_weighted_sums(
                weights[start - block :],
                BLOCK,
                even(queries),
                panel,
                stop - start,
                width,
                out,
                soon,
            )
        else:
            add_weighted_sums(
                scores[start - begin :], span, even(queries), panel, stop - start, width, out, soon
            )


@njit
def divide(scores, first, last, begin, span, sums, round_probability, weights, block):
    """Probabilities of a block: exponentials over their sums, rounded."""
    for i in range(len(sums)):
        whole = splat(sums[i])
        for p in range(first // 8 * 8, last, 8):
            e = load(scores, i * span + p - begin)
            store(weights, i * BLOCK + p - block, rounded(e / whole, round_probability))
