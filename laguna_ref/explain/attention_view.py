"""Where the heads look, over a whole prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from laguna_ref import checks
from laguna_ref.config import LayerSpec
from laguna_ref.errors import InputError
from laguna_ref.explain.probabilities import Block, blocks
from laguna_ref.explain.running import (
    OnPrefill,
    Watcher,
    checked,
    in_chunks,
    watching_attention,
)
from laguna_ref.kv_cache import KVSlice
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array


@dataclass(frozen=True)
class LayerAttention:
    """One layer's heads, each averaged over all queries; float64 [H] each."""

    layer: LayerSpec
    distance: Array
    """Tokens back that the head looks, weighted by probability."""
    entropy: Array
    """Of the probabilities, nats; exp of it is how many keys share the head's attention."""
    own: Array
    """Probability of the query's own token."""
    first: Array
    """Probability of the sequence's first token; of the queries that can see it."""
    gate: Array
    """What the head's output is multiplied by."""
    map: Array | None = None
    """[H, N, N]: the last N queries and keys, if asked for; rows need not sum to 1, as keys
    before are left out."""


@dataclass(frozen=True)
class AttentionView:
    """All layers over one prompt."""

    tokens: Array
    """int64 [T]"""
    layers: tuple[LayerAttention, ...]


def attention(
    model: Laguna,
    tokens: ArrayLike,
    *,
    maps: Iterable[int] = (),
    last: int = 32,
    on_prefill: OnPrefill | None = None,
) -> AttentionView:
    """Attention probabilities of a prompt, int [T], summed up; recomputed, a block at a time.

    maps: layers of which the probabilities between the ``last`` tokens are kept as well.

    Raises InputError for layers that there are not.
    """
    ids = checked(model, tokens)
    wanted = set(maps)
    for index in sorted(wanted):
        if not checks.is_count(index) or index >= len(model.config.layers):
            expected = f"0 to {len(model.config.layers) - 1}"
            raise InputError("no such layer", expected=expected, found=index)
    size = min(max(1, last), len(ids))
    sums = [
        _Sums(layer, len(ids), size if layer.index in wanted else None)
        for layer in model.config.layers
    ]

    def see(layer: LayerSpec, q: Array, kv: KVSlice) -> None:
        for block in blocks(q, kv, layer.window, model.numerics):
            sums[layer.index].add(block)

    def see_gate(name: str, gate: Array) -> None:
        sums[int(name.split(".")[2])].add_gate(gate)

    trace = Watcher(see_gate, "*.self_attn.gate")
    watched = watching_attention(model, see)
    for _ in in_chunks(watched, ids, trace=trace, on_prefill=on_prefill):
        pass
    return AttentionView(ids, tuple(one.result() for one in sums))


class _Sums:
    """Adds up one layer's blocks."""

    def __init__(self, layer: LayerSpec, tokens: int, kept: int | None) -> None:
        self._layer, self._tokens = layer, tokens
        names = ("distance", "entropy", "own", "first", "gate")
        self._sums = {name: np.zeros(layer.num_heads) for name in names}
        self._seeing_first = tokens if layer.window is None else min(tokens, layer.window)
        self._map = None if kept is None else np.zeros((layer.num_heads, kept, kept))

    def add(self, block: Block) -> None:
        p = block.probabilities.astype(np.float64)  # [t, h, s]
        keys = np.arange(block.first_key, block.first_key + p.shape[2])
        distance = (block.queries[:, None] - keys)[:, None, :]
        logs = np.log(np.where(p > 0, p, 1.0))
        own = np.arange(len(p)), slice(None), block.queries - block.first_key
        self._add("distance", block.heads, (p * distance).sum(axis=(0, 2)))
        self._add("entropy", block.heads, -(p * logs).sum(axis=(0, 2)))
        self._add("own", block.heads, p[own].sum(axis=0))
        if block.first_key == 0:
            self._add("first", block.heads, p[:, :, 0].sum(axis=0))
        if self._map is not None:
            self._keep(self._map, block, p)

    def add_gate(self, gate: Array) -> None:
        per_head = gate.reshape(len(gate), self._layer.num_heads, -1).astype(np.float64)
        self._sums["gate"] += per_head.mean(axis=2).sum(axis=0)

    def result(self) -> LayerAttention:
        counts = dict.fromkeys(self._sums, self._tokens) | {"first": self._seeing_first}
        means = {name: total / counts[name] for name, total in self._sums.items()}
        return LayerAttention(self._layer, **means, map=self._map)

    def _add(self, name: str, heads: slice, values: Array) -> None:
        self._sums[name][heads] += values

    def _keep(self, kept: Array, block: Block, p: Array) -> None:
        """Copies what lies within the last tokens."""
        first = self._tokens - kept.shape[1]
        rows = np.flatnonzero(block.queries >= first)
        low = max(first, block.first_key)
        high = block.first_key + p.shape[2]
        if len(rows) and low < high:
            into = slice(block.queries[rows[0]] - first, block.queries[rows[-1]] - first + 1)
            part = p[rows, :, low - block.first_key :]
            kept[block.heads, into, low - first : high - first] = part.transpose(1, 0, 2)
