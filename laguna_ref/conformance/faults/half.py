"""Faults of float16: sums that are kept in it, and a residual stream that outgrows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.activations import silu
from laguna_ref.ops.experts import sum_of_slots
from laguna_ref.ops.linear import BLOCK_BYTES, weight_rows
from laguna_ref.weights import MLPWeights

TILE = 16
"""Columns whose products are added exactly before the sum is rounded, as in a tensor core."""


def _to_half(x: Array) -> Array:
    """``x`` rounded to float16, in its own type; what is too large becomes the largest number."""
    largest = np.finfo(np.float16).max
    return np.clip(x, -largest, largest).astype(np.float16).astype(x.dtype)


def _linear(x: Array, weight: Weight, numerics: Numerics) -> Array:
    """``x W^T``, the running sum rounded to float16 after every ``TILE`` columns, [T, out]."""
    outputs, inputs = weight.shape
    out = np.zeros((len(x), outputs), dtype=numerics.dtype)
    step = max(1, BLOCK_BYTES // (inputs * numerics.dtype.itemsize))
    for start in range(0, outputs, step):
        matrix = weight_rows(weight, start, min(start + step, outputs), numerics)
        total = out[:, start : start + step]
        for column in range(0, inputs, TILE):
            tile = slice(column, column + TILE)
            total[:] = _to_half(total + x[:, tile] @ matrix[:, tile].T)
    return numerics.round_at("linear", out)


def _mlp(x: Array, weights: MLPWeights, numerics: Numerics) -> Array:
    gate = _linear(x, weights.gate_proj, numerics)
    up = _linear(x, weights.up_proj, numerics)
    activation = numerics.round_at("mlp.activation", silu(gate))
    product = numerics.round_at("mlp.product", activation * up)
    return _linear(product, weights.down_proj, numerics)


def _experts(
    x: Array, ids: Array, weights: Array, of: Sequence[MLPWeights], numerics: Numerics
) -> Array:
    slots = np.empty((*ids.shape, x.shape[1]), dtype=x.dtype)
    for expert in np.unique(ids).tolist():
        token, place = np.nonzero(ids == expert)
        weighted = _mlp(x[token], of[expert], numerics) * weights[token, place][:, None]
        slots[token, place] = numerics.round_at("experts.weighted", weighted)
    return sum_of_slots(slots, numerics)


def sums_in_float16(model: Laguna) -> Laguna:
    """Products with weights keep their running sums in float16, the router's excepted.

    A sum that outgrows it stays at 65504.
    """
    return changed(model, linear=_linear, mlp=_mlp, experts=_experts)


def residual_in_float16(model: Laguna) -> Laguna:
    """The residual stream is held as float16; what outgrows it saturates at 65504.

    Left to become infinite, it would end every run with an error, the oracle's too.
    """

    def add(residual: Array, x: Array, numerics: Numerics) -> Array:
        exact = replace(numerics, rounds=numerics.rounds - {"residual"})
        return _to_half(model.engine.add(residual, x, exact))

    return changed(model, add=add)


FAULTS = (
    Fault("half.sums_in_float16", "self_attn.q_proj", "all", "subtle", sums_in_float16),
    Fault("half.residual_in_float16", "post_attention_layernorm", "all", "subtle",
          residual_in_float16),
)  # fmt: skip
