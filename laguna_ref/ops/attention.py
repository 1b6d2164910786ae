"""Grouped-query attention over cached keys and values, full or sliding."""

from __future__ import annotations

import numpy as np

from laguna_ref.kv_cache import KVSlice
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.activations import softmax

MAX_SCORES = 4 * 1024 * 1024
"""Most scores held at a time, so that a long prompt never makes a T x T array."""


def attention(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
    """Softmax of scaled dot products, times the values; query t is the slice's own token t.

    ``softmax(q k^T * C**-0.5) v`` over the visible keys: those at or before the query and,
    with a window, less than ``window`` tokens back (so a window of 512 is the query's own
    token and the 511 before it).

    Shapes: q [T, H, C]; kv holds keys and values [S, G, C], the last T of them the queries'
    own -> [T, H, C]. Query head h reads key/value head ``h // (H / G)``.
    Dtypes: keys and values decoded from the cache's type; sums in the type of q.
    Rounds at: kv_cache.read, attention.scores, .scaled, .probabilities, .output.
    Follows: Transformers ``eager_attention_forward`` and its sliding-window mask.
    Easy to get wrong: a window of 511 or 513; head counts of the other kind of layer
    (vllm-project/vllm#41651); full layers given the window too (vLLM's laguna.py).
    """
    tokens, heads, head_dim = q.shape
    kv_heads = kv.keys.shape[1]
    group = heads // kv_heads
    first_query = kv.first + len(kv.keys) - tokens
    out = np.empty_like(q)
    for g in range(kv_heads):
        of_group = slice(g * group, (g + 1) * group)
        start = 0
        while start < tokens:
            low = 0 if window is None else max(0, first_query + start - window + 1 - kv.first)
            stop = _block_stop(start, tokens, group, len(kv.keys) - low)
            high = len(kv.keys) - tokens + stop
            keys, values = kv.decode(low, high, g, numerics)
            visible = _visible(
                np.arange(first_query + start, first_query + stop),
                np.arange(kv.first + low, kv.first + high),
                window,
            )
            scores = numerics.round_at("attention.scores", q[start:stop, of_group] @ keys.T)
            scale = numerics.dtype.type(head_dim**-0.5)
            scores = numerics.round_at("attention.scaled", scores * scale)
            scores = np.where(visible[:, None, :], scores, -np.inf)
            probabilities = numerics.round_at("attention.probabilities", softmax(scores))
            out[start:stop, of_group] = probabilities @ values
            start = stop
    return numerics.round_at("attention.output", out)


def _visible(queries: Array, keys: Array, window: int | None) -> Array:
    """[T, S] of booleans, from the tokens' places in the sequence."""
    distance = queries[:, None] - keys[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _block_stop(start: int, tokens: int, group: int, keys: int) -> int:
    return min(tokens, start + max(1, MAX_SCORES // (group * keys)))
