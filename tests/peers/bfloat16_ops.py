"""Each of our operations on the very inputs that a module of Transformers saw, in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint import DenseWeight
from laguna_ref.config import LayerSpec
from laguna_ref.engines import numpy_engine as ops
from laguna_ref.kv_cache import KVSlice
from laguna_ref.model import Laguna
from laguna_ref.numerics import BFLOAT16
from laguna_ref.weights import MLPWeights, SparseMLPWeights

Array = NDArray[Any]
Trace = dict[str, Array]


@dataclass(frozen=True)
class Pair:
    """One operation's result, ours and theirs, from equal inputs."""

    op: str
    at: str
    ours: Array
    theirs: Array
    sums: Array | None = None
    """For a product with a weight: the sum of the products' magnitudes."""


def pairs(model: Laguna, tokens: tuple[int, ...], seen: Trace) -> Iterator[Pair]:
    """Every operation of the forward pass, in order; ``model`` has bfloat16 numerics."""
    w, eps, n = model.weights, model.config.rms_norm_eps, model.numerics
    ids = np.array(tokens)
    yield Pair("embed", "model.embed_tokens", ops.embed(ids, w.embed_tokens, n),
               seen["model.embed_tokens"])  # fmt: skip
    for kind, spec in {layer.attention: layer.rope for layer in model.config.layers}.items():
        tables = np.stack(ops.rope_tables(spec, np.arange(len(ids)), n))
        yield Pair("rope_tables", kind, tables, seen[f"model.rotary_emb.{kind}"])
    for layer in model.config.layers:
        yield from _attention(model, layer, seen)
        yield from _mlp(model, layer, seen)
    x = seen["model.norm:input"]
    yield Pair("rms_norm", "model.norm", ops.rms_norm(x, w.norm, eps, n), seen["model.norm"])
    yield _linear("lm_head", w.lm_head, seen)


def _attention(model: Laguna, layer: LayerSpec, seen: Trace) -> Iterator[Pair]:
    w, eps, n = model.weights.layers[layer.index], model.config.rms_norm_eps, model.numerics
    at = f"model.layers.{layer.index}.self_attn"
    norm = f"model.layers.{layer.index}.input_layernorm"
    x = seen[f"{norm}:input"]
    yield Pair("rms_norm", norm, ops.rms_norm(x, w.input_layernorm, eps, n), seen[norm])
    for name in ("q_proj", "k_proj", "v_proj", "g_proj"):
        yield _linear(f"{at}.{name}", getattr(w.self_attn, name), seen)
    cos, sin = seen[f"model.rotary_emb.{layer.attention}"]
    for name in ("q", "k"):
        x = seen[f"{at}.{name}_norm:input"]
        normed = ops.rms_norm(x, getattr(w.self_attn, f"{name}_norm"), eps, n)
        yield Pair("rms_norm", f"{at}.{name}_norm", normed, seen[f"{at}.{name}_norm"])
        rotated = ops.apply_rope(seen[f"{at}.{name}_norm"], cos, sin, n)
        yield Pair("apply_rope", f"{at}.{name}_rope", rotated, seen[f"{at}.{name}_rope"])
    kv = KVSlice(seen[f"{at}.k_cached"], seen[f"{at}.v_cached"], 0, model.kv_formats[layer.index])
    attended = ops.attention(seen[f"{at}.q_rope"], kv, layer.window, n)
    yield Pair("attention", f"{at}.attention", attended, seen[f"{at}.attention"])
    gate = ops.gate_values(seen[f"{at}.g_proj"], layer.gate_activation, n)
    yield Pair("gate_values", f"{at}.gate", gate, seen[f"{at}.gate"])
    gated = ops.apply_gate(seen[f"{at}.attention"], seen[f"{at}.gate"], n)
    yield Pair("apply_gate", at, gated, seen[f"{at}.o_proj:input"])
    yield _linear(f"{at}.o_proj", w.self_attn.o_proj, seen)


def _mlp(model: Laguna, layer: LayerSpec, seen: Trace) -> Iterator[Pair]:
    w, eps, n = model.weights.layers[layer.index], model.config.rms_norm_eps, model.numerics
    at = f"model.layers.{layer.index}"
    norm = f"{at}.post_attention_layernorm"
    x = seen[f"{norm}:input"]
    added = ops.add(seen[f"{at}.input_layernorm:input"], seen[f"{at}.self_attn"], n)
    yield Pair("add", norm, added, x)
    yield Pair("rms_norm", norm, ops.rms_norm(x, w.post_attention_layernorm, eps, n), seen[norm])
    if isinstance(w.mlp, SparseMLPWeights):
        yield from _sparse(model, w.mlp, f"{at}.mlp", seen)
    else:
        yield from _swiglu(model, w.mlp, f"{at}.mlp", seen)
    yield Pair("add", at, ops.add(x, seen[f"{at}.mlp"], n), seen[at])


def _sparse(model: Laguna, w: SparseMLPWeights, at: str, seen: Trace) -> Iterator[Pair]:
    n = model.numerics
    x = seen[f"{at}.gate:input"]
    router = _linear(f"{at}.gate", w.gate, seen)
    cap = model.router.logit_softcapping
    if cap:  # what the module returns is soft-capped, by the same formula in float32
        logits = ops.route(x, w.gate, w.e_score_correction_bias, model.router, n)[0]
        yield Pair("router logits, soft-capped", f"{at}.gate", logits, seen[f"{at}.gate"])
    else:
        yield replace(router, op="router logits")
    ids, weights = _choice(model, w, seen[f"{at}.gate"])
    by_id, their_order = np.argsort(ids), np.argsort(seen[f"{at}.topk_ids"])
    yield Pair("topk_ids", at, np.take_along_axis(ids, by_id, -1),
               np.take_along_axis(seen[f"{at}.topk_ids"], their_order, -1))  # fmt: skip
    yield Pair("topk_weights", at, np.take_along_axis(weights, by_id, -1),
               np.take_along_axis(seen[f"{at}.topk_weights"], their_order, -1))  # fmt: skip
    ids, weights = seen[f"{at}.topk_ids"], seen[f"{at}.topk_weights"]
    routed = ops.experts(x, ids, weights, w.experts, n)
    yield Pair("experts", f"{at}.experts", routed, seen[f"{at}.experts"])
    yield from _swiglu(model, w.shared_experts, f"{at}.shared_experts", seen)
    both = (seen[f"{at}.experts"], seen[f"{at}.shared_experts"])
    combined = ops.combine(*both, model.config.moe_routed_scaling_factor, n)
    yield Pair("combine", at, combined, seen[at])


def _choice(model: Laguna, w: SparseMLPWeights, logits: Array) -> tuple[Array, Array]:
    """Our choice from their logits: the router on an identity matrix, its product not rounded."""
    identity = DenseWeight("identity", np.eye(logits.shape[1], dtype=np.float32))
    unrounded = replace(BFLOAT16, rounds=BFLOAT16.rounds - {"linear"})
    router = replace(model.router, logit_softcapping=0.0)
    _, ids, weights = ops.route(logits, identity, w.e_score_correction_bias, router, unrounded)
    return ids, weights


def _swiglu(model: Laguna, w: MLPWeights, at: str, seen: Trace) -> Iterator[Pair]:
    n = model.numerics
    yield _linear(f"{at}.gate_proj", w.gate_proj, seen)
    yield _linear(f"{at}.up_proj", w.up_proj, seen)
    yield _linear(f"{at}.down_proj", w.down_proj, seen)
    # silu(gate) * up alone: the block with the two products replaced by their known outputs.
    width = seen[f"{at}.gate_proj"].shape[1]
    eye, zero = np.eye(width, dtype=np.float32), np.zeros((width, width), np.float32)
    of_gate = DenseWeight("gate", np.concatenate([eye, zero], axis=1))
    of_up = DenseWeight("up", np.concatenate([zero, eye], axis=1))
    both = np.concatenate([seen[f"{at}.gate_proj"], seen[f"{at}.up_proj"]], axis=1)
    product = ops.mlp(both, MLPWeights(of_gate, of_up, DenseWeight("down", eye)), n)
    yield Pair("silu(gate) * up", at, product, seen[f"{at}.down_proj:input"])


def _linear(at: str, weight: Any, seen: Trace) -> Pair:
    x = seen[f"{at}:input"]
    matrix = weight.rows(dequant="bf16")
    ours = ops.linear(x, weight, BFLOAT16)
    return Pair("linear", at, ours, seen[at], np.abs(x) @ np.abs(matrix).T)


def ulp(x: Array) -> Array:
    """Distance from each number to the next larger bfloat16 in magnitude, float64."""
    magnitude = np.maximum(np.abs(x), np.finfo(np.float32).tiny)
    result: Array = np.exp2(np.floor(np.log2(magnitude.astype(np.float64))) - 7)
    return result


def is_bfloat16(x: Array) -> bool:
    """Whether every number is one that bfloat16 can hold."""
    return bool(np.array_equal(x, x.astype(ml_dtypes.bfloat16).astype(x.dtype)))
