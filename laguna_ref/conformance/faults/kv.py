"""Faults of the key/value cache: its scales, its type, and the ring of the sliding layers.

Where a cache is written in one way and read in another, it holds, as floats, what a reader would
make of the codes: then no engine needs to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from laguna_ref import checks
from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.kv_cache import KVCache, KVFormat, KVSlice, LayerCache
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.fp8 import fp8_decode, fp8_encode

E5M2_MAX = 57344.0
ONE = np.float32(1)

RoundTrip = Callable[[Array, str], Array]
"""``(x, trace point) -> what is read back``, in the type of ``x``."""


@dataclass(frozen=True)
class _AsRead(KVFormat):
    """An FP8 cache that holds what is read back, in the numerics' own type."""

    through: RoundTrip

    def storage_type(self, numerics: Numerics) -> np.dtype[Any]:
        return numerics.cache_dtype

    def encode(self, x: Array, point: str, dtype: np.dtype[Any]) -> Array:
        back = self.through(x, point)
        checks.finite(back, point)
        return back.astype(dtype)

    def decode(self, keys: Array, values: Array, numerics: Numerics) -> tuple[Array, Array]:
        return numerics.cast(keys), numerics.cast(values)


def _with_formats(model: Laguna, change: Callable[[KVFormat], KVFormat]) -> Laguna:
    """Another format for each layer that caches FP8."""
    result = changed(model)
    result.kv_formats = tuple(change(old) if old.fp8 else old for old in model.kv_formats)
    return result


def _scale(of: KVFormat, point: str) -> np.float32:
    return of.k_scale if point.endswith("k_cached") else of.v_scale


def _round_trips(model: Laguna, of_format: Callable[[KVFormat], RoundTrip]) -> Laguna:
    """Layers that cache FP8 give back something else than what they would."""
    return _with_formats(
        model, lambda old: _AsRead(old.fp8, old.k_scale, old.v_scale, of_format(old))
    )


def _read_with(
    model: Laguna, scales: Callable[[KVFormat], tuple[np.float32, np.float32]]
) -> Laguna:
    """Codes are written as they should be and read with other scales for (keys, values)."""

    def of_format(old: KVFormat) -> RoundTrip:
        wrong = KVFormat(True, *scales(old))

        def through(x: Array, point: str) -> Array:
            codes = fp8_encode(x, _scale(old, point), point)
            return fp8_decode(codes, _scale(wrong, point), model.numerics)

        return through

    return _round_trips(model, of_format)


def scales_swapped(model: Laguna) -> Laguna:
    """k_scale and v_scale are exchanged as they are loaded; writing and reading agree."""
    return _with_formats(model, lambda old: KVFormat(True, old.v_scale, old.k_scale))


def scales_swapped_in_reading(model: Laguna) -> Laguna:
    """Keys are read with v_scale and values with k_scale, though written with their own."""
    return _read_with(model, lambda old: (old.v_scale, old.k_scale))


def scales_inverted(model: Laguna) -> Laguna:
    """A scale is taken for its reciprocal, in writing (x * scale) and in reading."""
    return _with_formats(model, lambda old: KVFormat(True, ONE / old.k_scale, ONE / old.v_scale))


def scales_not_loaded(model: Laguna) -> Laguna:
    """The checkpoint's scales are not loaded: 1 takes their place in writing and reading."""
    return _with_formats(model, lambda old: KVFormat(True, ONE, ONE))


def scales_ignored_in_reading(model: Laguna) -> Laguna:
    """Codes are read without their scale."""
    return _read_with(model, lambda old: (ONE, ONE))


def scales_applied_twice(model: Laguna) -> Laguna:
    """Codes are multiplied by their scale twice when read."""
    return _read_with(model, lambda old: (old.k_scale**2, old.v_scale**2))


def scales_of_next_layer(model: Laguna) -> Laguna:
    """Layers write and read with the scales of the next, the last with those of the first."""
    result = changed(model)
    others = model.kv_formats[1:] + model.kv_formats[:1]
    result.kv_formats = tuple(
        KVFormat(own.fp8, other.k_scale, other.v_scale)
        for own, other in zip(model.kv_formats, others, strict=True)
    )
    return result


def keys_before_rope(model: Laguna) -> Laguna:
    """Keys are quantised as the norm gives them, and rotated when read.

    The trace shows it in ``k_norm``: that is where what is read back enters again.
    """
    scales = {
        id(layer.self_attn.k_norm): stored.k_scale
        for layer, stored in zip(model.weights.layers, model.kv_formats, strict=True)
        if stored.fp8
    }

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        normed = model.engine.rms_norm(x, weight, eps, numerics)
        if id(weight) not in scales:
            return normed
        codes = fp8_encode(normed, scales[id(weight)], "k_norm")
        return fp8_decode(codes, scales[id(weight)], numerics)

    def of_format(old: KVFormat) -> RoundTrip:
        def through(x: Array, point: str) -> Array:
            if point.endswith("k_cached"):
                return x
            return fp8_decode(fp8_encode(x, old.v_scale, point), old.v_scale, model.numerics)

        return through

    return changed(_round_trips(model, of_format), rms_norm=rms_norm)


def e5m2(model: Laguna) -> Laguna:
    """Codes have five exponent bits and two of mantissa, instead of four and three."""

    def of_format(old: KVFormat) -> RoundTrip:
        def through(x: Array, point: str) -> Array:
            scale = _scale(old, point)
            units = np.clip(x.astype(np.float32) / scale, -E5M2_MAX, E5M2_MAX)
            codes = units.astype(ml_dtypes.float8_e5m2).astype(x.dtype)
            return model.numerics.round_at("kv_cache.read", codes * x.dtype.type(scale))

        return through

    return _round_trips(model, of_format)


def codes_towards_zero(model: Laguna) -> Laguna:
    """Codes are cut off towards zero, not rounded to the nearest."""

    def of_format(old: KVFormat) -> RoundTrip:
        def through(x: Array, point: str) -> Array:
            scale = _scale(old, point)
            units = np.clip(x.astype(np.float32) / scale, -448, 448)
            nearest = units.astype(ml_dtypes.float8_e4m3fn)
            beyond = np.abs(nearest.astype(np.float32)) > np.abs(units)
            # Codes of one sign lie in the order of their bits: one less is one nearer to zero.
            cut = (nearest.view(np.uint8) - beyond).view(ml_dtypes.float8_e4m3fn)
            return model.numerics.round_at(
                "kv_cache.read", cut.astype(x.dtype) * x.dtype.type(scale)
            )

        return through

    return _round_trips(model, of_format)


def overflow_to_nan_code(model: Laguna) -> Laguna:
    """Without a clamp, values beyond 464 scales get the code of NaN, which is read as 480 scales.

    A reader that converts codes by shifting bits does so. One that gives NaN would end every run
    with an error, the oracle's too: that needs no diagnosis.
    """

    def of_format(old: KVFormat) -> RoundTrip:
        def through(x: Array, point: str) -> Array:
            scale = _scale(old, point)
            back = fp8_decode(fp8_encode(x, scale, point), scale, model.numerics)
            units = x.astype(np.float32) / scale
            too_large = model.numerics.round_at(
                "kv_cache.read", np.sign(x) * x.dtype.type(480 * scale)
            )
            return np.where(np.abs(units) > 464, too_large, back)

        return through

    return _round_trips(model, of_format)


def skip_list_off_by_one(model: Laguna) -> Laguna:
    """The layers after those of the skip list cache floats, not the layers on it.

    Changes nothing where all layers cache the same type.
    """
    result = changed(model)
    before = model.kv_formats[-1:] + model.kv_formats[:-1]
    result.kv_formats = tuple(
        replace(own, fp8=other.fp8) for own, other in zip(model.kv_formats, before, strict=True)
    )
    return result


class _SmallRing(LayerCache):
    """A ring of ``window - 1`` slots, into which a single token is written before it is read."""

    def _behind_ring(self, keys: Array, values: Array, window: int) -> KVSlice:
        seen = super()._behind_ring(keys, values, window)
        if len(keys) == 1 and len(seen.keys) == window:
            seen.keys[0], seen.values[0] = keys[0], values[0]
        return seen


def ring_one_short(model: Laguna) -> Laguna:
    """The ring has a slot too few: a decoded key also stands where the furthest one was.

    A whole prompt in one call does not read the ring and shows nothing; see ``_SmallRing``.
    """
    result = changed(model)

    def new_cache() -> KVCache:
        cache = KVCache(result.config, result.kv_formats, result.numerics)
        cache.layers = tuple(_small_ring(layer, result.numerics) for layer in cache.layers)
        return cache

    result.new_cache = new_cache  # type: ignore[method-assign]
    return result


def _small_ring(of: LayerCache, numerics: Numerics) -> LayerCache:
    return _SmallRing(of.name, of.shape, of.window, of.format, numerics, of.limit)


GITHUB = "https://github.com"
_K, _OUT = "self_attn.k_cached", "self_attn.attention"
FAULTS = (
    Fault("kv.scales_swapped", _K, "fp8", "subtle", scales_swapped),
    Fault("kv.scales_swapped_in_reading", _K, "fp8", "serious", scales_swapped_in_reading),
    Fault("kv.scales_inverted", _K, "fp8", "subtle", scales_inverted),
    Fault("kv.scales_not_loaded", _K, "fp8", "subtle", scales_not_loaded),
    Fault("kv.scales_ignored_in_reading", _K, "fp8", "fatal", scales_ignored_in_reading,
          (f"{GITHUB}/vllm-project/vllm/pull/42580",)),
    Fault("kv.scales_applied_twice", _K, "fp8", "fatal", scales_applied_twice),
    Fault("kv.scales_of_next_layer", _K, "fp8", "subtle", scales_of_next_layer),
    Fault("kv.keys_before_rope", "self_attn.k_norm", "fp8", "subtle", keys_before_rope),
    Fault("kv.e5m2", _K, "fp8", "subtle", e5m2),
    Fault("kv.codes_towards_zero", _K, "fp8", "serious", codes_towards_zero),
    Fault("kv.overflow_to_nan_code", _K, "fp8", "subtle", overflow_to_nan_code),
    Fault("kv.skip_list_off_by_one", _K, "all", "subtle", skip_list_off_by_one),
    Fault("kv.ring_one_short", _OUT, "sliding_attention", "serious", ring_one_short),
)  # fmt: skip
