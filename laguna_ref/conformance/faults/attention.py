"""Faults of attention and of its gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.kv_cache import KVSlice
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics

FULL, SLIDING = "full_attention", "sliding_attention"


def _windows(model: Laguna, kind: str, size: int | None) -> Laguna:
    """Layers of one kind see this many keys; the cache is as large as they need."""
    result = changed(model)
    layers = tuple(
        replace(spec, window=size) if spec.attention == kind else spec
        for spec in model.config.layers
    )
    result.config = replace(model.config, layers=layers)
    return result


def window_one_short(model: Laguna) -> Laguna:
    """The furthest visible key is hidden: 511 keys where 512 are configured."""
    return _windows(model, SLIDING, (model.config.sliding_window or 0) - 1)


def window_one_long(model: Laguna) -> Laguna:
    """One key too many is visible: 513 keys where 512 are configured."""
    return _windows(model, SLIDING, (model.config.sliding_window or 0) + 1)


def window_ignored(model: Laguna) -> Laguna:
    """Sliding layers see every earlier token."""
    return _windows(model, SLIDING, None)


def window_on_full_layers(model: Laguna) -> Laguna:
    """Full layers are given the window as well."""
    return _windows(model, FULL, model.config.sliding_window)


def scale_missing(model: Laguna) -> Laguna:
    """Scores are not divided by the root of the head's width."""

    def attention(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
        scaled = q * numerics.dtype.type(q.shape[-1] ** 0.5)
        return model.engine.attention(scaled, kv, window, numerics)

    return changed(model, attention=attention)


def groups_interleaved(model: Laguna) -> Laguna:
    """Query head h reads key/value head h mod G instead of h // (H / G)."""

    def attention(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
        heads, groups = q.shape[1], kv.keys.shape[1]
        order = np.arange(heads).reshape(-1, groups).T.ravel()
        out = np.empty_like(q)
        ordered = np.ascontiguousarray(q[:, order])
        out[:, order] = model.engine.attention(ordered, kv, window, numerics)
        return out

    return changed(model, attention=attention)


def gate_sigmoid(model: Laguna) -> Laguna:
    """The gate is a sigmoid, as the model card says, instead of a softplus."""

    def gate_values(gate_logits: Array, activation: str, numerics: Numerics) -> Array:
        return model.engine.gate_values(gate_logits, "sigmoid", numerics)

    return changed(model, gate_values=gate_values)


def gate_missing(model: Laguna) -> Laguna:
    """Attention's output is not gated."""

    def gate_values(gate_logits: Array, activation: str, numerics: Numerics) -> Array:
        return np.ones_like(gate_logits)

    return changed(model, gate_values=gate_values)


_OUT, _GATE = "self_attn.attention", "self_attn.gate"
FAULTS = (
    Fault("attention.window_one_short", _OUT, SLIDING, "subtle", window_one_short),
    Fault("attention.window_one_long", _OUT, SLIDING, "subtle", window_one_long),
    Fault("attention.window_ignored", _OUT, SLIDING, "serious", window_ignored),
    Fault("attention.window_on_full_layers", _OUT, FULL, "serious", window_on_full_layers),
    Fault("attention.scale_missing", _OUT, "all", "fatal", scale_missing),
    Fault("attention.groups_interleaved", _OUT, "all", "fatal", groups_interleaved),
    Fault("gate.sigmoid", _GATE, "all", "fatal", gate_sigmoid),
    Fault("gate.missing", _GATE, "all", "fatal", gate_missing,
          ("https://github.com/vllm-project/vllm-metal/pull/562",)),
)  # fmt: skip
