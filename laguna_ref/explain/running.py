"""Running a prompt so that values are looked at when they are computed, and not kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from numpy.typing import ArrayLike

from laguna_ref import checks
from laguna_ref.config import LayerSpec
from laguna_ref.engines import with_wrapped
from laguna_ref.generate import PREFILL_CHUNK
from laguna_ref.kv_cache import KVCache, KVSlice
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics
from laguna_ref.trace import Recorder

OnPrefill = Callable[[int, int], None]
"""Called with the tokens done and the tokens there are."""
SeeAttention = Callable[[LayerSpec, Array, KVSlice], None]
"""Called with a layer, its queries [T, H, C] and the keys and values that they may look at."""


class Watcher(Recorder):
    """A recorder that hands each value on as it is computed, and keeps none."""

    def __init__(self, see: Callable[[str, Array], None], *patterns: str) -> None:
        super().__init__(*patterns)
        self._see = see

    def record(self, name: str, value: Array) -> None:
        """Calls ``see`` with a value whose name a pattern matches."""
        if self.wants(name):
            self._see(name, value)


def checked(model: Laguna, tokens: ArrayLike) -> Array:
    """Token ids as int64 [T]; raises InputError as the model does."""
    return checks.tokens(tokens, model.config, 0)


def in_chunks(
    model: Laguna,
    tokens: Array,
    *,
    trace: Recorder | None = None,
    cache: KVCache | None = None,
    last_only: bool = True,
    chunk: int = PREFILL_CHUNK,
    on_prefill: OnPrefill | None = None,
) -> Iterator[tuple[slice, Array]]:
    """(rows, logits) chunk by chunk through a cache, as generation prefills."""
    cache = model.new_cache() if cache is None else cache
    for start in range(0, len(tokens), chunk):
        rows = slice(start, min(start + chunk, len(tokens)))
        yield rows, model(tokens[rows], cache=cache, last_only=last_only, trace=trace)
        if on_prefill is not None:
            on_prefill(rows.stop, len(tokens))


def watching_attention(model: Laguna, see: SeeAttention) -> Laguna:
    """A copy that shares the weights and shows what each layer's attention is given.

    The engine is not told which layer it works for; they come in order, one call each.
    """
    result = copy.copy(model)
    calls = 0

    def attention(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
        nonlocal calls
        see(model.config.layers[calls % len(model.config.layers)], q, kv)
        calls += 1
        return model.engine.attention(q, kv, window, numerics)

    result.engine = with_wrapped(model.engine, attention=attention)
    return result
