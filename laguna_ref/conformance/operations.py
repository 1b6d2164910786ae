"""Every operation of the forward pass by itself, on inputs that are given.

An operation's inputs are trace points, so a backend that dumps its trace can be judged on its
own inputs: what it inherited from earlier operations is then no error of this one. The wiring
is that of ``laguna_ref/model.py``; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from laguna_ref.config import LayerSpec
from laguna_ref.kv_cache import KVFormat, KVSlice, LayerCache
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.ops.router import choose, scores_of, weights_of
from laguna_ref.weights import LayerWeights, MLPWeights, SparseMLPWeights

Points = Mapping[str, Array]
"""Values by the name of their trace point, each [T, ...]."""


@dataclass(frozen=True)
class Operation:
    """One operation: the trace point it computes, those it reads, and how."""

    point: str
    inputs: tuple[str, ...]
    compute: Callable[[Points], Array]
    layer: int | None
    name: str
    """What it is, for a reader: ``rms_norm``, ``linear``, ``attention``, ..."""


def operations(model: Laguna, tokens: Array, positions: Array) -> list[Operation]:
    """All operations of one prompt, in order of execution; ``model`` is the oracle."""
    return list(_all(model, np.asarray(tokens), np.asarray(positions)))


def layer_input(layer: int) -> str:
    """The trace point that a layer reads."""
    return f"model.layers.{layer - 1}" if layer else "model.embed_tokens"


def evaluate_layer(layer_operations: list[Operation], given: Points) -> Points:
    """All points of one layer from its input, and the routing if ``given`` holds it."""
    values = dict(given)
    for operation in layer_operations:
        if operation.point not in values:
            values[operation.point] = operation.compute(values)
    return values


def _all(model: Laguna, tokens: Array, positions: Array) -> Iterator[Operation]:
    w, n, engine = model.weights, model.numerics, model.engine
    eps = model.config.rms_norm_eps

    yield Operation(
        "model.embed_tokens", (), lambda _: engine.embed(tokens, w.embed_tokens, n), None, "embed"
    )
    for spec in model.config.layers:
        yield from _attention(model, spec, w.layers[spec.index], positions)
        yield from _mlp(model, spec, w.layers[spec.index])
    last = layer_input(len(model.config.layers))
    yield Operation(
        "model.norm", (last,), lambda v: engine.rms_norm(_in(v[last], n.dtype), w.norm, eps, n),
        None, "rms_norm",
    )  # fmt: skip
    yield Operation(
        "lm_head", ("model.norm",),
        lambda v: engine.linear(_in(v["model.norm"], n.dtype), w.lm_head, n), None, "linear",
    )  # fmt: skip


def _in(x: Array, dtype: np.dtype[np.generic]) -> Array:
    return np.asarray(x, dtype=dtype)


def _attention(
    model: Laguna, spec: LayerSpec, weights: LayerWeights, positions: Array
) -> Iterator[Operation]:
    engine, n, w, eps = model.engine, model.numerics, weights.self_attn, model.config.rms_norm_eps
    layer, x = spec.index, layer_input(spec.index)
    at = f"model.layers.{layer}.self_attn"
    h = f"model.layers.{layer}.input_layernorm"

    def read(values: Points, name: str) -> Array:
        return _in(values[name], n.dtype)

    def op(point: str, inputs: tuple[str, ...], name: str, compute: Callable[[Points], Array]):  # type: ignore[no-untyped-def]
        return Operation(point, inputs, compute, layer, name)

    def norm(values: Points, source: str, weight: Array) -> Array:
        return engine.rms_norm(read(values, source), weight, eps, n)

    def heads(values: Points, source: str) -> Array:
        value = read(values, source)
        return value.reshape(len(value), -1, spec.head_dim)

    yield op(h, (x,), "rms_norm", lambda v: norm(v, x, weights.input_layernorm))
    for letter in "qkv":
        matrix = getattr(w, f"{letter}_proj")
        yield op(f"{at}.{letter}_proj", (h,), "linear",
                 partial(lambda v, m: engine.linear(read(v, h), m, n), m=matrix))  # fmt: skip
    for letter in "qk":
        weight, source = getattr(w, f"{letter}_norm"), f"{at}.{letter}_proj"
        yield op(f"{at}.{letter}_norm", (source,), "rms_norm",
                 partial(lambda v, s, m: engine.rms_norm(heads(v, s), m, eps, n),
                         s=source, m=weight))  # fmt: skip

    def rotated(values: Points, source: str) -> Array:
        tables = engine.rope_tables(spec.rope, positions, n)
        return engine.apply_rope(heads(values, source), *tables, n)

    for letter in "qk":
        source = f"{at}.{letter}_norm"
        yield op(f"{at}.{letter}_rope", (source,), "apply_rope", partial(rotated, source=source))

    stored = model.kv_formats[layer]

    def cached(values: Points, source: str, place: int) -> Array:
        rows = heads(values, source)
        cache = LayerCache(at, rows.shape[1:], None, stored, n)
        return cache.append(rows, rows).newest(len(rows), n)[place]

    yield op(f"{at}.k_cached", (f"{at}.k_rope",), "kv_cache",
             lambda v: cached(v, f"{at}.k_rope", 0))  # fmt: skip
    yield op(f"{at}.v_cached", (f"{at}.v_proj",), "kv_cache",
             lambda v: cached(v, f"{at}.v_proj", 1))  # fmt: skip

    def attended(values: Points) -> Array:
        as_read = KVFormat(False, np.float32(1), np.float32(1))
        keys, held = heads(values, f"{at}.k_cached"), heads(values, f"{at}.v_cached")
        kv = KVSlice(keys, held, 0, as_read)
        return engine.attention(heads(values, f"{at}.q_rope"), kv, spec.window, n)

    yield op(f"{at}.attention", (f"{at}.q_rope", f"{at}.k_cached", f"{at}.v_cached"),
             "attention", attended)  # fmt: skip
    yield op(f"{at}.g_proj", (h,), "linear", lambda v: engine.linear(read(v, h), w.g_proj, n))
    g = f"{at}.g_proj"
    yield op(f"{at}.gate", (g,), "gate_values",
             lambda v: engine.gate_values(read(v, g), spec.gate_activation, n))  # fmt: skip

    def projected(values: Points) -> Array:
        gated = engine.apply_gate(heads(values, f"{at}.attention"), read(values, f"{at}.gate"), n)
        return engine.linear(gated, w.o_proj, n)

    inputs = (f"{at}.attention", f"{at}.gate")
    yield op(f"{at}.o_proj", inputs, "apply_gate and linear", projected)
    yield op(at, (f"{at}.o_proj",), "output", lambda v: read(v, f"{at}.o_proj"))


def _mlp(model: Laguna, spec: LayerSpec, weights: LayerWeights) -> Iterator[Operation]:
    engine, n, eps = model.engine, model.numerics, model.config.rms_norm_eps
    layer, x = spec.index, layer_input(spec.index)
    out, attention = f"model.layers.{layer}", f"model.layers.{layer}.self_attn"
    at, h = f"{out}.mlp", f"{out}.post_attention_layernorm"

    def read(values: Points, name: str) -> Array:
        return _in(values[name], n.dtype)

    def between(values: Points) -> Array:
        return engine.add(read(values, x), read(values, attention), n)

    yield Operation(
        h, (x, attention),
        lambda v: engine.rms_norm(between(v), weights.post_attention_layernorm, eps, n),
        layer, "add and rms_norm",
    )  # fmt: skip
    if isinstance(weights.mlp, SparseMLPWeights):
        yield from _sparse(model, layer, weights.mlp, at, h)
    else:
        dense: MLPWeights = weights.mlp
        yield Operation(at, (h,), lambda v: engine.mlp(read(v, h), dense, n), layer, "mlp")
    yield Operation(
        out, (x, attention, at), lambda v: engine.add(between(v), read(v, at), n), layer, "add"
    )


def _sparse(model: Laguna, layer: int, w: SparseMLPWeights, at: str, h: str) -> Iterator[Operation]:
    engine, n, spec = model.engine, model.numerics, model.router
    gate, ids, weights = f"{at}.gate", f"{at}.topk_ids", f"{at}.topk_weights"

    def read(values: Points, name: str) -> Array:
        return _in(values[name], n.dtype)

    def logits(values: Points) -> Array:
        return engine.route(read(values, h), w.gate, w.e_score_correction_bias, spec, n)[0]

    def chosen(values: Points) -> Array:
        scores = scores_of(read(values, gate), spec.score_func)
        return choose(scores, w.e_score_correction_bias, spec, n)[0]

    def weighed(values: Points) -> Array:
        scores = scores_of(read(values, gate), spec.score_func)
        return weights_of_chosen(values[ids], scores, model)

    def routed(values: Points) -> Array:
        return engine.experts(
            read(values, h), values[ids].astype(np.int64), read(values, weights), w.experts, n
        )

    def combined(values: Points) -> Array:
        factor = model.config.moe_routed_scaling_factor
        both = (read(values, f"{at}.experts"), read(values, f"{at}.shared_experts"))
        return engine.combine(*both, factor, n)

    yield Operation(gate, (h,), logits, layer, "router logits")
    yield Operation(ids, (gate,), chosen, layer, "choice of experts")
    yield Operation(weights, (gate, ids), weighed, layer, "weights of experts")
    yield Operation(f"{at}.experts", (h, ids, weights), routed, layer, "experts")
    yield Operation(
        f"{at}.shared_experts", (h,), lambda v: engine.mlp(read(v, h), w.shared_experts, n),
        layer, "mlp",
    )  # fmt: skip
    yield Operation(at, (f"{at}.experts", f"{at}.shared_experts"), combined, layer, "combine")


def weights_of_chosen(ids: Array, scores: Array, model: Laguna) -> Array:
    """The oracle's weights [T, K] of experts that somebody else chose."""
    return weights_of(ids.astype(np.int64), scores, model.router, model.numerics)
