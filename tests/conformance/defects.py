"""Backends with one planted defect each: the oracle in float32, one thing wrong.

Each says which operation of which layer is its first cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import laguna_ref
from laguna_ref.checkpoint.formats import DenseWeight
from laguna_ref.engines import with_replaced
from laguna_ref.kv_cache import KVFormat
from laguna_ref.ops.activations import sigmoid
from laguna_ref.ops.router import choose, scores_of, soft_cap

Model = laguna_ref.Laguna


@dataclass(frozen=True)
class Defect:
    name: str
    point: str
    """Trace point of the first cause."""
    plant: Callable[[Model], Model]
    at_position: int = 0
    """RoPE position of the first token, where a short prompt would not show it."""
    kv_cache: str = "checkpoint"


def fresh(model: Model, **functions: Any) -> Model:
    """A copy with some of the engine's functions replaced."""
    engine = with_replaced(model.engine, **functions) if functions else model.engine
    fp8 = [stored.fp8 for stored in model.kv_formats]
    return Model(model.checkpoint, engine, model.numerics, fp8)


def layer_weights(layer: int, part: str, **changes: Any) -> Callable[[Model], Model]:
    """Weights of one layer replaced; values may be functions of the old ones."""

    def plant(model: Model) -> Model:
        result = fresh(model)
        old = result.weights.layers[layer]
        inner = getattr(old, part) if part else old
        new = {k: v(getattr(inner, k)) if callable(v) else v for k, v in changes.items()}
        changed = replace(inner, **new)
        layers = list(result.weights.layers)
        whole: Any = {part: changed}
        layers[layer] = replace(old, **whole) if part else changed
        result.weights = replace(result.weights, layers=tuple(layers))
        return result

    return plant


def dense(change: Callable[[Any], Any]) -> Callable[[Any], DenseWeight]:
    """A weight matrix with its numbers changed."""
    return lambda weight: DenseWeight(weight.name, change(weight.rows(dtype=np.float32)))


def model_weights(name: str, change: Callable[[Any], Any]) -> Callable[[Model], Model]:
    def plant(model: Model) -> Model:
        result = fresh(model)
        new = change(getattr(result.weights, name))
        result.weights = replace(result.weights, **{name: new})
        return result

    return plant


def rope(kind: str, **changes: Any) -> Callable[[Model], Model]:
    """Other RoPE parameters for every layer of one kind of attention."""

    def plant(model: Model) -> Model:
        specs = {layer.attention: layer.rope for layer in model.config.layers}
        wrong = replace(specs[kind], **changes)

        def tables(spec: Any, positions: Any, numerics: Any) -> Any:
            return model.engine.rope_tables(
                wrong if spec == specs[kind] else spec, positions, numerics
            )

        return fresh(model, rope_tables=tables)

    return plant


def window(layer: int, size: int | None) -> Callable[[Model], Model]:
    """One layer's window, by counting the calls: one a layer."""

    def plant(model: Model) -> Model:
        calls = iter(range(10**9))
        layers = len(model.config.layers)

        def attention(q: Any, kv: Any, given: Any, numerics: Any) -> Any:
            here = next(calls) % layers == layer
            return model.engine.attention(q, kv, size if here else given, numerics)

        return fresh(model, attention=attention)

    return plant


def routing(change: Callable[..., Any], layer: int) -> Callable[[Model], Model]:
    """One layer's router: ``change(logits, bias, spec, numerics) -> ids, weights``."""

    def plant(model: Model) -> Model:
        def route(x: Any, weight: Any, bias: Any, spec: Any, numerics: Any) -> Any:
            if f".layers.{layer}." not in weight.name:
                return model.engine.route(x, weight, bias, spec, numerics)
            logits = soft_cap(model.engine.linear(x, weight, numerics), spec.logit_softcapping)
            return logits, *change(logits, bias, spec, numerics)

        return fresh(model, route=route)

    return plant


def no_bias(logits: Any, bias: Any, spec: Any, numerics: Any) -> Any:
    return choose(scores_of(logits, spec.score_func), np.zeros_like(bias), spec, numerics)


def softmax_scores(logits: Any, bias: Any, spec: Any, numerics: Any) -> Any:
    return choose(scores_of(logits, "softmax"), bias, spec, numerics)


def no_renormalisation(logits: Any, bias: Any, spec: Any, numerics: Any) -> Any:
    plain = replace(spec, norm_topk_prob=False)
    return choose(scores_of(logits, spec.score_func), bias, plain, numerics)


def bias_in_weights(logits: Any, bias: Any, spec: Any, numerics: Any) -> Any:
    scores = scores_of(logits, spec.score_func) + bias.astype(np.float32)
    return choose(scores, np.zeros_like(bias), spec, numerics)


def sigmoid_gate(model: Model) -> Model:
    def gate_values(logits: Any, activation: str, numerics: Any) -> Any:
        return sigmoid(logits)

    return fresh(model, gate_values=gate_values)


def scaling_factor(factor: float) -> Callable[[Model], Model]:
    def plant(model: Model) -> Model:
        def combine(routed: Any, shared: Any, given: float, numerics: Any) -> Any:
            return model.engine.combine(routed, shared, factor, numerics)

        return fresh(model, combine=combine)

    return plant


def shared_scaled_too(model: Model) -> Model:
    def combine(routed: Any, shared: Any, factor: float, numerics: Any) -> Any:
        return model.engine.combine(routed + shared, np.zeros_like(shared), factor, numerics)

    return fresh(model, combine=combine)


def one_expert(layer: int, expert: int) -> Callable[[Model], Model]:
    """Codes of one expert's INT4 matrix read with nibbles swapped."""

    def swapped(weight: Any) -> Any:
        words = np.ascontiguousarray(weight.packed).view(np.uint8)
        nibbles = ((words >> 4) | (words << 4)).astype(np.uint8).view(np.int32)
        return replace(weight, packed=nibbles)

    def experts(old: Any) -> Any:
        new = list(old)
        new[expert] = replace(new[expert], down_proj=swapped(new[expert].down_proj))
        return new

    return layer_weights(layer, "mlp", experts=experts)


def kv_scale(layer: int, factor: float) -> Callable[[Model], Model]:
    """Keys read back with another scale than they were stored with."""

    def plant(model: Model) -> Model:
        result = fresh(model)
        formats = list(result.kv_formats)
        old = formats[layer]
        formats[layer] = KVFormat(old.fp8, np.float32(old.k_scale * factor), old.v_scale)
        result.kv_formats = tuple(formats)
        return result

    return plant


def eps(model: Model) -> Model:
    def rms_norm(x: Any, weight: Any, given: float, numerics: Any) -> Any:
        return model.engine.rms_norm(x, weight, 1e-5, numerics)

    return fresh(model, rms_norm=rms_norm)


def heads_in_pairs(model: Model) -> Model:
    """RoPE over interleaved pairs instead of halves."""

    def apply_rope(x: Any, cos: Any, sin: Any, numerics: Any) -> Any:
        half = cos.shape[-1]
        a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        c, s = cos[:, None], sin[:, None]
        out = x.copy()
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = a * c - b * s, b * c + a * s
        return out

    return fresh(model, apply_rope=apply_rope)


L = "model.layers"
DEFECTS = [
    Defect("embedding: one row", "model.embed_tokens",
           model_weights("embed_tokens", dense(lambda m: m * 1.01))),
    Defect("input norm: 1 + weight", f"{L}.2.input_layernorm",
           layer_weights(2, "", input_layernorm=lambda w: w.astype(np.float32) + 1)),
    Defect("post-attention norm left out", f"{L}.5.post_attention_layernorm",
           layer_weights(5, "", post_attention_layernorm=lambda w: np.ones_like(w))),
    Defect("every norm: eps 1e-5", f"{L}.0.input_layernorm", eps),
    Defect("q norm of the keys", f"{L}.3.self_attn.q_norm",
           layer_weights(3, "self_attn", q_norm=lambda w: w.astype(np.float32) * 1.05)),
    Defect("k norm left out", f"{L}.6.self_attn.k_norm",
           layer_weights(6, "self_attn", k_norm=lambda w: np.ones_like(w))),
    Defect("YaRN: attention factor derived", f"{L}.0.self_attn.q_rope",
           rope("full_attention", attention_factor=1.2079)),
    Defect("YaRN: factor 16", f"{L}.0.self_attn.q_rope", rope("full_attention", factor=16.0)),
    Defect("sliding RoPE: theta 500000", f"{L}.1.self_attn.q_rope",
           rope("sliding_attention", rope_theta=500000.0)),
    Defect("RoPE in pairs", f"{L}.0.self_attn.q_rope", heads_in_pairs),
    Defect("window one short", f"{L}.2.self_attn.attention", window(2, 5)),
    Defect("full layer windowed", f"{L}.4.self_attn.attention", window(4, 6)),
    Defect("gate: sigmoid", f"{L}.0.self_attn.gate", sigmoid_gate),
    Defect("gate of another head", f"{L}.3.self_attn.g_proj",
           layer_weights(3, "self_attn", g_proj=dense(lambda m: np.roll(m, 1, axis=0)))),
    Defect("router: no bias", f"{L}.3.mlp.topk_ids", routing(no_bias, 3)),
    Defect("router: bias in the weights", f"{L}.5.mlp.topk_weights", routing(bias_in_weights, 5)),
    Defect("router: softmax", f"{L}.2.mlp.topk_ids", routing(softmax_scores, 2)),
    Defect("no renormalisation", f"{L}.4.mlp.topk_weights", routing(no_renormalisation, 4)),
    Defect("routed scaling factor 1", f"{L}.1.mlp", scaling_factor(1.0)),
    Defect("shared expert scaled too", f"{L}.1.mlp", shared_scaled_too),
    Defect("shared expert: up and gate swapped", f"{L}.6.mlp.shared_experts",
           lambda model: layer_weights(6, "mlp", shared_experts=lambda s: replace(
               s, gate_proj=s.up_proj, up_proj=s.gate_proj))(model)),
    Defect("one expert's INT4 nibbles swapped", f"{L}.2.mlp.experts", one_expert(2, 5)),
    Defect("KV scale", f"{L}.5.self_attn.k_cached", kv_scale(5, 1.1)),
    Defect("o_proj transposed heads", f"{L}.7.self_attn.o_proj",
           layer_weights(7, "self_attn", o_proj=dense(lambda m: np.roll(m, 32, axis=1)))),
    Defect("final norm", "model.norm",
           model_weights("norm", lambda w: w.astype(np.float32) * 1.001)),
    Defect("head: one row off", "lm_head",
           model_weights("lm_head", dense(lambda m: np.roll(m, 1, axis=0)))),
]  # fmt: skip


def by_name(defects: list[Defect]) -> Mapping[str, Defect]:
    return {defect.name: defect for defect in defects}
