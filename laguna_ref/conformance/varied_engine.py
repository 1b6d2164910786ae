"""The oracle's operations with the freedoms that a legal implementation has.

The formulas are those of ``laguna_ref/ops``; what differs is the order of every sum, where a
fused kernel does not round, and the named choices of a ``Manner``. With the plain manner and
``blas`` sums it is the oracle itself, only with its weights kept dequantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.sums import Sums
from laguna_ref.engines import Engine, numpy_engine, with_replaced
from laguna_ref.kv_cache import KVSlice
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.activations import silu
from laguna_ref.ops.fp8 import fp8_decode, fp8_encode
from laguna_ref.ops.linear import BLOCK_BYTES, weight_rows
from laguna_ref.ops.rope import scaled_table
from laguna_ref.ops.router import RouterSpec, choose, scores_of, soft_cap
from laguna_ref.rope_spec import RopeSpec
from laguna_ref.weights import MLPWeights

MAX_SCORES = 4 * 1024 * 1024
"""Most attention scores of one key/value head held at a time."""


@dataclass(frozen=True)
class Manner:
    """Named choices that legal implementations make differently."""

    attention: str = "eager"
    """``eager``: probabilities normalised, then times values; ``fused``: divided at the end, as
    flash attention does (scores are then never rounded)."""
    experts: str = "grouped"
    """``grouped``: summed in top-k order, one rounding; ``loop``: ascending experts, each
    addition rounded; ``reversed``: grouped, last choice first."""
    rope: str = "released"
    """``released``: float32 angles; ``nudged``: inverse frequencies up to two units in the last
    place off, as those are that Transformers computes in float32; ``exact``: float64 angles."""
    router: str = "rounded"
    """``rounded``: the router's product in the activations' type; ``float32``: kept as it is."""
    fold_scale: bool = False
    """Attention's scale multiplies the queries instead of the scores."""
    int8_block: int = 0
    """Columns that share one scale when what enters a product is quantised to INT8; 0: none."""
    fp8_queries: bool = False


def varied_engine(sums: Sums, manner: Manner, matrices: Matrices) -> Engine:
    """An engine for one run; ``sums.random`` advances with every call."""
    ops = _Operations(sums, manner, matrices)
    return with_replaced(
        numpy_engine,
        linear=ops.linear,
        rms_norm=ops.rms_norm,
        rope_tables=ops.rope_tables,
        attention=ops.attention,
        mlp=ops.mlp,
        route=ops.route,
        experts=ops.experts,
    )


class _Operations:
    def __init__(self, sums: Sums, manner: Manner, matrices: Matrices) -> None:
        self.sums, self.manner, self.matrices = sums, manner, matrices

    def linear(self, x: Array, weight: Weight, numerics: Numerics) -> Array:
        return numerics.round_at("linear", self._product(x, weight, numerics))

    def _product(self, x: Array, weight: Weight, numerics: Numerics) -> Array:
        if self.manner.int8_block:
            x = through_int8(x, self.manner.int8_block)
        outputs, inputs = weight.shape
        step = max(1, BLOCK_BYTES // (inputs * numerics.dtype.itemsize))
        if outputs <= step:
            return self.sums.dot(x, self.matrices.of(weight, numerics))
        blocks = [
            self.sums.dot(x, weight_rows(weight, at, min(at + step, outputs), numerics))
            for at in range(0, outputs, step)
        ]
        return np.concatenate(blocks, axis=1)

    def rms_norm(self, x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        squares = np.square(x)[..., self.sums.order(x.shape[-1])]
        inverse = 1 / np.sqrt(np.mean(squares, axis=-1, keepdims=True) + x.dtype.type(eps))
        normalised = numerics.round_at("norm.normalised", x * inverse)
        stored = numerics.round_at("weight", numerics.cast(weight))
        return numerics.round_at("norm.weighted", stored * normalised)

    def rope_tables(
        self, spec: RopeSpec, positions: Array, numerics: Numerics
    ) -> tuple[Array, Array]:
        if self.manner.rope == "released":
            return numpy_engine.rope_tables(spec, positions, numerics)
        inv_freq = spec.inv_freq
        if self.manner.rope == "exact":
            angles = positions[:, None] * inv_freq
        else:
            single = inv_freq.astype(np.float32)
            steps = self.sums.random.integers(-2, 3, single.shape).astype(np.float32)
            nudged = single + steps * np.spacing(single)
            angles = (positions[:, None].astype(np.float32) * nudged).astype(np.float64)
        cos, sin = np.cos(angles), np.sin(angles)
        return scaled_table(cos, spec, numerics), scaled_table(sin, spec, numerics)

    def attention(self, q: Array, kv: KVSlice, window: int | None, numerics: Numerics) -> Array:
        if self.manner.fp8_queries:
            q = fp8_decode(fp8_encode(q, np.float32(1), "q"), np.float32(1), numerics)
        tokens, heads, head_dim = q.shape
        group = heads // kv.keys.shape[1]
        first = kv.first + len(kv.keys) - tokens
        places = kv.first + np.arange(len(kv.keys))
        out = np.empty_like(q)
        step = max(1, MAX_SCORES // (group * len(kv.keys)))
        for g in range(kv.keys.shape[1]):
            keys, values = kv.decode(0, len(kv.keys), g, numerics)
            for start in range(0, tokens, step):
                rows = slice(start, min(start + step, tokens))
                distance = (first + np.arange(rows.start, rows.stop))[:, None] - places
                hidden = (distance < 0) | ((distance >= window) if window else False)
                of_group = q[rows, g * group : (g + 1) * group].reshape(-1, head_dim)
                mask = np.repeat(hidden, group, axis=0)  # [T * group, S]
                attended = self._head(of_group, keys, values, mask, numerics)
                shape = (rows.stop - rows.start, group, head_dim)
                out[rows, g * group : (g + 1) * group] = attended.reshape(shape)
        return numerics.round_at("attention.output", out)

    def _head(self, q: Array, keys: Array, values: Array, hidden: Array, n: Numerics) -> Array:
        scale = n.dtype.type(q.shape[1] ** -0.5)
        fused = self.manner.attention == "fused"
        if self.manner.fold_scale:
            scores = self.sums.dot(q * scale, keys)
        else:
            scores = self.sums.dot(q, keys)
            scores = scores if fused else n.round_at("attention.scores", scores)
            scores = scores * scale
        scores = scores if fused else n.round_at("attention.scaled", scores)
        scores = np.where(hidden, -np.inf, scores)
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        total = e[:, self.sums.order(e.shape[1])].sum(axis=-1, keepdims=True)
        if fused:
            attended: Array = self.sums.dot(n.round_at("attention.probabilities", e), values.T)
            return np.asarray(attended / total)
        return self.sums.dot(n.round_at("attention.probabilities", e / total), values.T)

    def mlp(self, x: Array, weights: MLPWeights, numerics: Numerics) -> Array:
        gate = self.linear(x, weights.gate_proj, numerics)
        up = self.linear(x, weights.up_proj, numerics)
        activation = numerics.round_at("mlp.activation", silu(gate))
        product = numerics.round_at("mlp.product", activation * up)
        return self.linear(product, weights.down_proj, numerics)

    def route(
        self, x: Array, weight: Weight, bias: Array, spec: RouterSpec, numerics: Numerics
    ) -> tuple[Array, Array, Array]:
        logits = self._product(x, weight, numerics)
        if self.manner.router == "rounded":
            logits = numerics.round_at("linear", logits)
        logits = soft_cap(logits, spec.logit_softcapping)
        ids, weights = choose(scores_of(logits, spec.score_func), bias, spec, numerics)
        return logits, ids, weights

    def experts(
        self,
        x: Array,
        ids: Array,
        weights: Array,
        expert_weights: Sequence[MLPWeights],
        numerics: Numerics,
    ) -> Array:
        slots = np.empty((*ids.shape, x.shape[1]), dtype=x.dtype)
        for expert in np.unique(ids).tolist():
            token, place = np.nonzero(ids == expert)
            output = self.mlp(x[token], expert_weights[expert], numerics)
            weighted = output * weights[token, place][:, None]
            slots[token, place] = numerics.round_at("experts.weighted", weighted)
        if self.manner.experts == "loop":
            slots = np.take_along_axis(slots, np.argsort(ids, axis=1)[:, :, None], axis=1)
        elif self.manner.experts == "reversed":
            slots = slots[:, ::-1]
        total = slots[:, 0]
        for k in range(1, slots.shape[1]):
            total = total + slots[:, k]
            if self.manner.experts == "loop":
                total = numerics.round_at("experts.sum", total)
        return numerics.round_at("experts.sum", total)


def through_int8(x: Array, block: int) -> Array:
    """``x`` [T, in] as integers to 127 times one scale for each ``block`` columns of a token."""
    rows, columns = x.shape
    width = block if columns % block == 0 else columns
    groups: Any = x.reshape(rows, -1, width)
    scale = np.abs(groups).max(axis=-1, keepdims=True) / x.dtype.type(127)
    scale = np.where(scale == 0, x.dtype.type(1), scale)
    quantised: Array = (np.rint(groups / scale) * scale).reshape(rows, columns)
    return quantised
