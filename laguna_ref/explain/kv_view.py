"""What an FP8 cache costs: error, saturation and underflow of keys and values, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from laguna_ref.config import LayerSpec
from laguna_ref.explain.running import OnPrefill, Watcher, checked, in_chunks
from laguna_ref.kv_cache import KVFormat, cache_bytes
from laguna_ref.model import Laguna
from laguna_ref.numerics import FLOAT64, Array
from laguna_ref.ops.fp8 import E4M3FN_MAX, fp8_decode, fp8_encode

POINTS = ("self_attn.k_rope", "self_attn.v_proj")
"""What is cached: keys after RoPE, values as projected."""


@dataclass(frozen=True)
class FP8Error:
    """Keys, or values, of one layer over a prompt."""

    scale: float
    """One step of the code 1.0; the checkpoint's, or 1 where it has none."""
    greatest: float
    """Greatest absolute value."""
    rms: float
    relative_error: float
    """RMS of what FP8 gives back less what it was given, over the RMS of the latter."""
    saturated: int
    """Values beyond 448 times the scale, which are clamped."""
    vanished: int
    """Values that are not zero and come back as zero."""
    values: int
    """Numbers in all."""

    @property
    def range_used(self) -> float:
        """Greatest value over the greatest that FP8 can hold at this scale; above 1 saturates."""
        return self.greatest / (E4M3FN_MAX * self.scale)


@dataclass(frozen=True)
class LayerKV:
    """One layer's cache."""

    layer: LayerSpec
    fp8: bool
    """Whether the model caches it as FP8; where not, the errors are those that FP8 would make
    with the same scales."""
    keys: FP8Error
    values: FP8Error


@dataclass(frozen=True)
class KVView:
    """All layers over one prompt."""

    tokens: Array
    """int64 [T]"""
    layers: tuple[LayerKV, ...]
    nbytes: dict[str, int]
    """Bytes of the cache after the prompt by kind of attention, bfloat16 where it is not FP8."""
    full_nbytes: dict[str, int]
    """The same at max_position_embeddings."""


def kv(model: Laguna, tokens: ArrayLike, *, on_prefill: OnPrefill | None = None) -> KVView:
    """Sends the keys and values of a prompt, int [T], through FP8 and measures what comes back.

    What is measured is what the model computed, in its own numerics and with its own cache, so
    later layers are fed by what earlier ones read back. Memory does not grow with the prompt
    beyond its cache. Raises InputError.
    """
    ids = checked(model, tokens)
    sums = {
        f"model.layers.{layer.index}.{point}": _Sums(_scale(stored, point))
        for layer, stored in zip(model.config.layers, model.kv_formats, strict=True)
        for point in POINTS
    }
    trace = Watcher(lambda name, value: sums[name].add(value), *(f"*.{p}" for p in POINTS))
    for _ in in_chunks(model, ids, trace=trace, on_prefill=on_prefill):
        pass
    layers = tuple(
        LayerKV(layer, stored.fp8, *(sums[f"model.layers.{layer.index}.{point}"].result()
                                     for point in POINTS))
        for layer, stored in zip(model.config.layers, model.kv_formats, strict=True)
    )  # fmt: skip
    fp8 = [stored.fp8 for stored in model.kv_formats]
    most = model.config.max_position_embeddings
    return KVView(
        ids, layers, cache_bytes(model.config, len(ids), fp8),
        cache_bytes(model.config, most, fp8),
    )  # fmt: skip


def _scale(stored: KVFormat, point: str) -> np.float32:
    return stored.k_scale if point == POINTS[0] else stored.v_scale


class _Sums:
    """Adds up what FP8 does to the values that come by."""

    def __init__(self, scale: np.float32) -> None:
        self._scale = scale
        self._squares = self._errors = self._greatest = 0.0
        self._saturated = self._vanished = self._values = 0

    def add(self, value: Array) -> None:
        wide = value.astype(np.float64)
        codes = fp8_encode(value, self._scale, "explain.kv")
        # Exact, so that the error is the cache's own and not that of reading it in float32.
        back = fp8_decode(codes, self._scale, FLOAT64)
        size = np.abs(wide)
        self._squares += float(np.sum(wide**2))
        self._errors += float(np.sum((back - wide) ** 2))
        self._greatest = max(self._greatest, float(size.max()))
        self._saturated += int(np.sum(size > E4M3FN_MAX * np.float64(self._scale)))
        self._vanished += int(np.sum((back == 0) & (wide != 0)))
        self._values += wide.size

    def result(self) -> FP8Error:
        rms = float(np.sqrt(self._squares / self._values))
        return FP8Error(
            scale=float(self._scale),
            greatest=self._greatest,
            rms=rms,
            relative_error=float(np.sqrt(self._errors / self._squares)) if self._squares else 0.0,
            saturated=self._saturated,
            vanished=self._vanished,
            values=self._values,
        )
