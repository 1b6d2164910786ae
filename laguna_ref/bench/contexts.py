"""Caches that hold a long context without anyone having computed it.

Filling 131,072 positions by running the model takes many times longer than what is measured
afterwards. How long a token takes does not depend on what the keys and values are, as long as
they are ordinary numbers: so each cached position gets the key and value of a token drawn at
random from a short prompt that the model did run, through the cache's own ``append`` and
``commit``.
"""

from __future__ import annotations

import numpy as np

from laguna_ref.kv_cache import KVCache
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder

SAMPLE_TOKENS = 128
CHUNK = 4096


class Filler:
    """Fills caches of one model with keys and values it computed for a short prompt."""

    def __init__(self, model: Laguna, seed: int = 0) -> None:
        self._model = model
        self._numbers = np.random.default_rng(seed)
        count = min(SAMPLE_TOKENS, model.config.max_position_embeddings)
        points = ("self_attn.k_rope", "self_attn.v_proj")
        trace = Recorder(*(f"model.layers.*.{point}" for point in points))
        model(random_tokens(model, count, seed), last_only=True, trace=trace)
        self._sample: list[tuple[Array, Array]] = []
        for layer in model.config.layers:
            keys, values = (trace[f"model.layers.{layer.index}.{point}"] for point in points)
            shape = (count, layer.num_kv_heads, layer.head_dim)
            self._sample.append((keys.reshape(shape), values.reshape(shape)))

    def filled(self, length: int) -> KVCache:
        """A cache that holds ``length`` tokens."""
        cache = self._model.new_cache()
        for start in range(0, length, CHUNK):
            count = min(CHUNK, length - start)
            for layer, (keys, values) in zip(cache.layers, self._sample, strict=True):
                drawn = self._numbers.integers(len(keys), size=count)
                layer.append(keys[drawn], values[drawn])
            cache.commit()
        return cache


def random_tokens(model: Laguna, count: int, seed: int) -> Array:
    """Token ids, each as likely as any other."""
    return np.random.default_rng(seed).integers(model.config.vocab_size, size=count)
