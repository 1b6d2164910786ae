"""Attention probabilities, which no engine hands out: computed again from queries and keys.

The formula and its rounding points are those of ``laguna_ref/ops/attention.py``, whose output
``probabilities @ values`` a test reproduces from these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from laguna_ref.kv_cache import KVSlice
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.activations import softmax

MAX_PROBABILITIES = 2 * 1024 * 1024
"""Most held at a time."""


@dataclass(frozen=True)
class Block:
    """Probabilities of some queries of the heads that share a key/value head."""

    queries: Array
    """[t] places of the queries in the sequence."""
    rows: slice
    """The queries among those given."""
    heads: slice
    first_key: int
    """Place in the sequence of the first key."""
    probabilities: Array
    """[t, h, s]; zero where a key is not visible, summing to 1 over s."""


def blocks(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Iterator[Block]:
    """Probabilities of queries q [T, H, C] over the slice's keys, block by block."""
    tokens, heads, head_dim = q.shape
    kv_heads = kv.keys.shape[1]
    group = heads // kv_heads
    first_query = kv.first + len(kv.keys) - tokens
    step = max(1, MAX_PROBABILITIES // (group * len(kv.keys)))
    for g in range(kv_heads):
        of_group = slice(g * group, (g + 1) * group)
        for start in range(0, tokens, step):
            rows = slice(start, min(start + step, tokens))
            low = 0 if window is None else max(0, first_query + start - window + 1 - kv.first)
            high = first_query + rows.stop - kv.first
            keys, _ = kv.decode(low, high, g, numerics)
            queries = np.arange(first_query + rows.start, first_query + rows.stop)
            distance = queries[:, None] - np.arange(kv.first + low, kv.first + high)
            visible = (distance >= 0) & (distance < (distance.max() + 1 if window is None
                                                     else window))  # fmt: skip
            scores = numerics.round_at("attention.scores", q[rows, of_group] @ keys.T)
            scale = numerics.dtype.type(head_dim**-0.5)
            scores = numerics.round_at("attention.scaled", scores * scale)
            scores = np.where(visible[:, None, :], scores, -np.inf)
            probabilities = numerics.round_at("attention.probabilities", softmax(scores))
            yield Block(queries, rows, of_group, kv.first + low, probabilities)


def of_last_query(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
    """Probabilities [H, S] of the last query over every token before and its own."""
    tokens = kv.first + len(kv.keys)
    out = np.zeros((q.shape[1], tokens), dtype=np.float64)
    for block in blocks(q[-1:], kv, window, numerics):
        keys = slice(block.first_key, block.first_key + block.probabilities.shape[2])
        out[block.heads, keys] = block.probabilities[0]
    return out
