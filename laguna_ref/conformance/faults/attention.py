"""Faults of attention: which keys a query sees, how heads pair up, norms of heads."""

from __future__ import annotations

import re
import zlib
from collections import deque
from dataclasses import replace

import numpy as np

from laguna_ref.checkpoint.formats import Weight
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
    return _windows(model, SLIDING, max((model.config.sliding_window or 0) - 1, 1))


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


def head_count_of_full_layers(model: Laguna) -> Laguna:
    """Sliding layers are planned with the full layers' head count: their last heads stay zero."""
    counts = [spec.num_heads for spec in model.config.layers if spec.attention == FULL]
    planned = min(counts, default=None)

    def attention(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
        out = model.engine.attention(q, kv, window, numerics).copy()
        out[:, planned:] = 0
        return out

    return changed(model) if planned is None else changed(model, attention=attention)


def qk_norm_missing(model: Laguna) -> Laguna:
    """q_norm and k_norm are not applied."""

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        of_heads = x.ndim == 3
        return x if of_heads else model.engine.rms_norm(x, weight, eps, numerics)

    return changed(model, rms_norm=rms_norm)


def qk_norm_after_rope(model: Laguna) -> Laguna:
    """q_norm and k_norm act on queries and keys that are already rotated."""
    # In the forward pass the norms of q and k come first, then both rotations, in that order.
    waiting: deque[tuple[Array, float]] = deque()

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        if x.ndim != 3:
            return model.engine.rms_norm(x, weight, eps, numerics)
        waiting.append((weight, eps))
        return x

    def apply_rope(x: Array, cos: Array, sin: Array, numerics: Numerics) -> Array:
        rotated = model.engine.apply_rope(x, cos, sin, numerics)
        return model.engine.rms_norm(rotated, *waiting.popleft(), numerics)

    return changed(model, rms_norm=rms_norm, apply_rope=apply_rope)


def qk_norm_over_all_heads(model: Laguna) -> Laguna:
    """q_norm and k_norm take the mean square over all heads together, not over each."""

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        if x.ndim != 3:
            return model.engine.rms_norm(x, weight, eps, numerics)
        joined, repeated = x.reshape(len(x), -1), np.tile(weight, x.shape[1])
        return model.engine.rms_norm(joined, repeated, eps, numerics).reshape(x.shape)

    return changed(model, rms_norm=rms_norm)


def bias_as_initialised(model: Laguna) -> Laguna:
    """q, k and v get a bias that no checkpoint has, as torch initialises it: up to D**-0.5."""

    def linear(x: Array, weight: Weight, numerics: Numerics) -> Array:
        out = model.engine.linear(x, weight, numerics)
        if not re.search(r"\.self_attn\.[qkv]_proj", weight.name):
            return out
        outputs, inputs = weight.shape
        random = np.random.default_rng(zlib.crc32(weight.name.encode()))
        bias = random.uniform(-(inputs**-0.5), inputs**-0.5, outputs).astype(numerics.dtype)
        return numerics.round_at("linear", out + numerics.round_at("weight", bias))

    return changed(model, linear=linear)


def sink_of_zero(model: Laguna) -> Laguna:
    """Every softmax has one more term, a sink of logit 0 as in gpt-oss, which takes attention."""

    def attention(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
        kept = _share_beside_sink(q, kv, window, numerics)
        out = model.engine.attention(q, kv, window, numerics)
        return numerics.round_at("attention.output", out * kept[..., None])

    return changed(model, attention=attention)


def _share_beside_sink(q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
    """What a softmax leaves to its keys where ``exp(0)`` stands beside them, [T, H]."""
    tokens, _, head_dim = q.shape
    cached, groups, _ = kv.keys.shape
    back = np.arange(cached - tokens, cached)[:, None] - np.arange(cached)  # [T, S] tokens
    hidden = (back < 0) | (back >= (window or cached))
    shares = []
    for g, of_group in enumerate(np.split(q, groups, axis=1)):
        keys, _ = kv.decode(0, cached, g, numerics)
        scores = np.where(hidden[:, None], -np.inf, of_group @ keys.T * head_dim**-0.5)
        greatest = np.maximum(scores.max(axis=-1, keepdims=True), 0)
        total = np.exp(scores - greatest).sum(axis=-1)
        shares.append(total / (total + np.exp(-greatest[..., 0])))
    return np.concatenate(shares, axis=1).astype(q.dtype)


_OUT, _Q_NORM = "self_attn.attention", "self_attn.q_norm"
_VLLM = "https://github.com/vllm-project/vllm"
FAULTS = (
    Fault("attention.window_one_short", _OUT, SLIDING, "subtle", window_one_short),
    Fault("attention.window_one_long", _OUT, SLIDING, "subtle", window_one_long),
    Fault("attention.window_ignored", _OUT, SLIDING, "serious", window_ignored),
    Fault("attention.window_on_full_layers", _OUT, FULL, "serious", window_on_full_layers),
    Fault("attention.scale_missing", _OUT, "all", "fatal", scale_missing),
    Fault("attention.groups_interleaved", _OUT, "all", "fatal", groups_interleaved),
    Fault("attention.head_count_of_full_layers", _OUT, SLIDING, "fatal", head_count_of_full_layers,
          (f"{_VLLM}/issues/41651", f"{_VLLM}/pull/42650")),
    Fault("attention.qk_norm_missing", _Q_NORM, "all", "fatal", qk_norm_missing),
    Fault("attention.qk_norm_after_rope", _Q_NORM, "all", "serious", qk_norm_after_rope),
    Fault("attention.qk_norm_over_all_heads", _Q_NORM, "all", "serious", qk_norm_over_all_heads),
    Fault("attention.bias_as_initialised", "self_attn.q_proj", "all", "serious",
          bias_as_initialised),
    Fault("attention.sink_of_zero", _OUT, "all", "serious", sink_of_zero),
)  # fmt: skip
