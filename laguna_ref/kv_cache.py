"""The key/value cache: all tokens on full layers, a ring of ``window`` on sliding ones.

Keys are stored after RoPE, values as projected; both in the numerics' own type or as FP8 codes
with one scale per layer. FP8 is part of what the model computes, not an approximation of it:
the current token's own key and value are read back through the cache's type too.

In memory the tokens of one head follow each other: attention reads a head at a time, and rows
that lie apart come in slowly.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from laguna_ref import checks
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import CacheError
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.fp8 import fp8_decode, fp8_encode


@dataclass(frozen=True)
class KVFormat:
    """How one layer's keys and values are stored."""

    fp8: bool
    k_scale: np.float32
    v_scale: np.float32

    def storage_type(self, numerics: Numerics) -> np.dtype[Any]:
        """FP8 codes, or the numerics' own type."""
        return np.dtype(np.uint8) if self.fp8 else numerics.cache_dtype

    def encode(self, x: Array, point: str, dtype: np.dtype[Any]) -> Array:
        """What is stored of x [T, G, C]; ``point`` is its trace point, a ``k_cached`` for keys."""
        if not self.fp8:
            # A value that later queries may see must not reach earlier ones as 0 * NaN.
            checks.finite(x, point)
            return x.astype(dtype)
        return fp8_encode(x, self.k_scale if point.endswith("k_cached") else self.v_scale, point)

    def decode(self, keys: Array, values: Array, numerics: Numerics) -> tuple[Array, Array]:
        """Stored keys and values, [..., C] each, as numbers of the same shapes."""
        if self.fp8:
            return (
                fp8_decode(keys, self.k_scale, numerics),
                fp8_decode(values, self.v_scale, numerics),
            )
        return numerics.cast(keys), numerics.cast(values)


@dataclass(frozen=True)
class KVSlice:
    """Consecutive cached tokens of one layer, as stored, oldest first."""

    keys: Array
    """[S, G, C]: uint8 codes, or floats."""
    values: Array
    """[S, G, C]"""
    first: int
    """Place in the sequence of row 0."""
    format: KVFormat

    def decode(self, start: int, stop: int, g: int, numerics: Numerics) -> tuple[Array, Array]:
        """Keys and values of rows ``start:stop`` of key/value head ``g``, each [S', C]."""
        keys, values = self.keys[start:stop, g], self.values[start:stop, g]
        return self.format.decode(keys, values, numerics)

    def newest(self, count: int, numerics: Numerics) -> tuple[Array, Array]:
        """Keys and values of the last ``count`` tokens as read back, each [count, G, C]."""
        first = len(self.keys) - count
        return self.format.decode(self.keys[first:], self.values[first:], numerics)


class LayerCache:
    """One layer's cached keys and values; ``window`` None keeps all, else the last ``window``."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        window: int | None,
        stored: KVFormat,
        numerics: Numerics,
        limit: int = 2**62,
    ) -> None:
        self.name = name
        self.limit = limit  # max_position_embeddings: more room is never needed
        self.window = window
        self.format = stored
        self.shape = shape
        self.dtype = stored.storage_type(numerics)
        self.length = 0
        self._oldest = 0  # the first token a ring still holds; truncating does not bring back more
        self._keys = _rows(window or 0, shape, self.dtype)
        self._values = _rows(window or 0, shape, self.dtype)
        self._pending: tuple[Array, Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self._keys.nbytes + self._values.nbytes

    def append(self, keys: Array, values: Array) -> KVSlice:
        """Takes in a chunk [T, G, C]; returns what its queries may look at, itself included.

        The chunk counts as cached only after ``commit``. On a sliding layer nothing is
        overwritten before that: a chunk meets what the ring still holds, its own first queries
        need those keys, and a forward pass that fails half way leaves the ring as it was.
        """
        keys, values = self._encode(keys, "k_cached"), self._encode(values, "v_cached")
        self._pending = (keys, values)
        if self.window is None:
            return self._behind_all(keys, values)
        return self._behind_ring(keys, values, self.window)

    def commit(self) -> None:
        """Makes the chunk of the last ``append`` part of the cache."""
        if self._pending is None:
            return
        keys, values = self._pending
        end = self.length + len(keys)
        if self.window is not None:
            kept = min(len(keys), self.window)
            slots = np.arange(end - kept, end) % self.window
            self._keys[slots] = keys[len(keys) - kept :]
            self._values[slots] = values[len(keys) - kept :]
            self._oldest = max(self._oldest, end - self.window)
        self.length = end
        self._pending = None

    def truncate(self, length: int) -> None:
        """Forgets the tokens from ``length`` on, without asking whether that is possible."""
        self.length = length
        self._oldest = min(self._oldest, length)
        self._pending = None

    def require_truncatable(self, length: int) -> None:
        """Raises CacheError if a token at ``length`` would need keys already overwritten."""
        if self.window is None:
            return
        needed = max(0, length - self.window + 1)
        if needed < min(self._oldest, length):
            raise CacheError(
                f"cannot truncate to {length} tokens: the ring has overwritten keys it needs",
                tensor=self.name,
                expected=f"keys from token {needed} on",
                found=f"keys from token {self._oldest} on",
            )

    def _encode(self, x: Array, point: str) -> Array:
        return self.format.encode(x, f"{self.name}.{point}", self.dtype)

    def _behind_all(self, keys: Array, values: Array) -> KVSlice:
        end = self.length + len(keys)
        if end > len(self._keys):
            capacity = max(end, min(2 * len(self._keys), self.limit))
            self._keys = _grown(self._keys, self.length, capacity)
            self._values = _grown(self._values, self.length, capacity)
        self._keys[self.length : end] = keys
        self._values[self.length : end] = values
        return KVSlice(self._keys[:end], self._values[:end], 0, self.format)

    def _behind_ring(self, keys: Array, values: Array, window: int) -> KVSlice:
        first = max(0, self.length - window + 1)
        return KVSlice(
            _continued(self._keys, first, self.length, keys),
            _continued(self._values, first, self.length, values),
            first,
            self.format,
        )


class KVCache:
    """The caches of all layers of one sequence."""

    def __init__(
        self, config: LagunaConfig, formats: Sequence[KVFormat], numerics: Numerics
    ) -> None:
        shape = (config.num_key_value_heads, config.head_dim)
        self.layers = tuple(
            LayerCache(
                f"model.layers.{s.index}.self_attn",
                shape,
                s.window,
                stored,
                numerics,
                config.max_position_embeddings,
            )
            for s, stored in zip(config.layers, formats, strict=True)
        )

    def __repr__(self) -> str:
        return f"<KVCache of {self.length} tokens, {self.nbytes} bytes>"

    @property
    def length(self) -> int:
        """Tokens cached so far."""
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(layer.nbytes for layer in self.layers)

    def commit(self) -> None:
        """Makes the chunk that every layer took in last part of the cache."""
        for layer in self.layers:
            layer.commit()

    def copy(self) -> KVCache:
        """An independent cache with the same contents."""
        return copy.deepcopy(self)

    def truncate(self, length: int) -> None:
        """Forgets all tokens from ``length`` on.

        Raises CacheError, and changes nothing, if ``length`` is not within the cache or if a
        sliding layer has overwritten keys that the next token would need.
        """
        if not checks.is_count(length) or length > self.length:
            raise CacheError("cannot truncate", expected=f"0 to {self.length} tokens", found=length)
        for layer in self.layers:
            layer.require_truncatable(length)
        for layer in self.layers:
            layer.truncate(length)

    def require_layout(
        self, config: LagunaConfig, formats: Sequence[KVFormat], numerics: Numerics
    ) -> None:
        """Raises CacheError unless the cache was made for such a model."""
        shape = (config.num_key_value_heads, config.head_dim)
        expected = [
            (shape, layer.window, stored, stored.storage_type(numerics))
            for layer, stored in zip(config.layers, formats, strict=True)
        ]
        found = [(x.shape, x.window, x.format, x.dtype) for x in self.layers]
        if expected != found:
            pairs = enumerate(zip(expected, found, strict=False))
            at = next((i for i, (mine, its) in pairs if mine != its), 0)
            raise CacheError(
                f"the cache is another model's (layer {at} of {len(found)})",
                expected=expected[at : at + 1],
                found=found[at : at + 1],
            )


def cache_bytes(config: LagunaConfig, tokens: int, fp8_layers: Sequence[bool]) -> dict[str, int]:
    """Bytes of keys and values per kind of attention after ``tokens`` tokens, bfloat16 or FP8."""
    result = dict.fromkeys((layer.attention for layer in config.layers), 0)
    for layer, fp8 in zip(config.layers, fp8_layers, strict=True):
        held = tokens if layer.window is None else min(tokens, layer.window)
        result[layer.attention] += (
            2 * held * layer.num_kv_heads * layer.head_dim * (1 if fp8 else 2)
        )
    return result


def _rows(count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Room for [count, G, C], each head's rows side by side."""
    heads, width = shape
    return np.empty((heads, count, width), dtype=dtype).transpose(1, 0, 2)


def _grown(array: Array, used: int, capacity: int) -> Array:
    grown = _rows(capacity, array.shape[1:], array.dtype)
    grown[:used] = array[:used]
    return grown


def _continued(ring: Array, first: int, end: int, new: Array) -> Array:
    """What a ring holds of tokens ``first`` to ``end``, oldest first, and new ones behind."""
    old, start = end - first, first % len(ring)
    unbroken = min(old, len(ring) - start)
    result = _rows(old + len(new), ring.shape[1:], ring.dtype)
    result[:unbroken] = ring[start : start + unbroken]
    result[unbroken:old] = ring[: old - unbroken]
    result[old:] = new
    return result
