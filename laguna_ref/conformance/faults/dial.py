"""Faults with a number in them: a constant that a port took otherwise, to be found by fitting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from laguna_ref.conformance.faults.fault import changed, first_point, rope_of, with_rope
from laguna_ref.kv_cache import KVFormat
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Dial:
    """A number of the model, and how it is set."""

    name: str
    point: str
    layers: str
    """As in ``Fault``."""
    configured: Callable[[Laguna], float | None]
    """Its value in a model; None where the model has none."""
    plant: Callable[[Laguna, float], Laguna]
    low: float = 0.25
    """Least value looked at, as a multiple of the configured one."""
    high: float = 4.0

    def first_point(self, model: Laguna) -> str | None:
        """As ``Fault.first_point``."""
        return first_point(model, self.layers, self.point)


def _rope(kind: str, key: str) -> tuple[Callable[..., float | None], Callable[..., Laguna]]:
    def configured(model: Laguna) -> float | None:
        spec = rope_of(model, kind)
        value = None if spec is None else getattr(spec, key)
        return None if value is None else float(value)

    return configured, lambda model, value: with_rope(model, kind, **{key: value})


def _yarn(key: str) -> tuple[Callable[..., float | None], Callable[..., Laguna]]:
    configured, plant = _rope(FULL, key)

    def of_yarn(model: Laguna) -> float | None:
        spec = rope_of(model, FULL)
        return configured(model) if spec is not None and spec.rope_type == "yarn" else None

    return of_yarn, plant


def _eps(model: Laguna, value: float) -> Laguna:
    result = changed(model)
    result.config = replace(model.config, rms_norm_eps=value)
    return result


def _routed_scaling(model: Laguna, value: float) -> Laguna:
    result = changed(model)
    result.config = replace(model.config, moe_routed_scaling_factor=value)
    return result


def _attention_scale(model: Laguna, value: float) -> Laguna:
    """Scores are multiplied by ``value`` beside head_dim^-1/2."""

    def attention(q: Array, kv: object, window: int | None, numerics: Numerics) -> Array:
        scaled = numerics.cast(np.asarray(q, np.float64) * value)
        return model.engine.attention(scaled, kv, window, numerics)  # type: ignore[arg-type]

    return changed(model, attention=attention)


def _shared_scale(model: Laguna, value: float) -> Laguna:
    def combine(routed: Array, shared: Array, factor: float, numerics: Numerics) -> Array:
        scaled = numerics.cast(np.asarray(shared, np.float64) * value)
        return model.engine.combine(routed, scaled, factor, numerics)

    return changed(model, combine=combine)


def _kv(which: str) -> tuple[Callable[..., float | None], Callable[..., Laguna]]:
    def configured(model: Laguna) -> float | None:
        return 1.0 if any(stored.fp8 for stored in model.kv_formats) else None

    def plant(model: Laguna, value: float) -> Laguna:
        result = changed(model)
        factor = np.float32(value)
        k, v = (factor, np.float32(1)) if which == "k" else (np.float32(1), factor)
        result.kv_formats = tuple(
            KVFormat(stored.fp8, stored.k_scale * k, stored.v_scale * v)
            for stored in model.kv_formats
        )
        return result

    return configured, plant


DIALS = (
    Dial("rope.attention_factor", "self_attn.q_rope", FULL, *_yarn("attention_factor")),
    Dial("rope.yarn_factor", "self_attn.q_rope", FULL, *_yarn("factor")),
    Dial("rope.theta_full", "self_attn.q_rope", FULL, *_rope(FULL, "rope_theta"), 1e-3, 1e3),
    Dial("rope.theta_sliding", "self_attn.q_rope", SLIDING, *_rope(SLIDING, "rope_theta"),
         1e-3, 1e3),
    Dial("norm.eps", "input_layernorm", "all", lambda m: m.config.rms_norm_eps, _eps, 1e-3, 1e4),
    Dial("router.scaling_factor", "mlp", "sparse",
         lambda m: m.config.moe_routed_scaling_factor, _routed_scaling),
    Dial("attention.scale", "self_attn.attention", "all", lambda m: 1.0, _attention_scale,
         1 / 16, 16),
    Dial("experts.shared_scale", "mlp", "sparse", lambda m: 1.0, _shared_scale),
    Dial("kv.k_scale", "self_attn.k_cached", "fp8", *_kv("k")),
    Dial("kv.v_scale", "self_attn.v_cached", "fp8", *_kv("v")),
)  # fmt: skip
"""All of them."""
