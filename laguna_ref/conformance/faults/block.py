"""Faults of embedding and head, and of how experts are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics
from laguna_ref.weights import MLPWeights


def ids_off_by_one(model: Laguna) -> Laguna:
    """The embedding is read one row too far, the last id wrapping to the first."""

    def embed(tokens: Array, weight: Weight, numerics: Numerics) -> Array:
        return model.engine.embed((tokens + 1) % weight.shape[0], weight, numerics)

    return changed(model, embed=embed)


def head_tied(model: Laguna) -> Laguna:
    """The head's own matrix is not used: logits come from the embedding."""
    result = changed(model)
    result.weights = replace(model.weights, lm_head=model.weights.embed_tokens)
    return result


def shared_doubled(model: Laguna) -> Laguna:
    """The shared expert's output is added twice, as by every rank before an all-reduce."""

    def combine(routed: Array, shared: Array, factor: float, numerics: Numerics) -> Array:
        return model.engine.combine(routed, shared + shared, factor, numerics)

    return changed(model, combine=combine)


def shared_missing(model: Laguna) -> Laguna:
    """The shared expert's output is not added."""

    def combine(routed: Array, shared: Array, factor: float, numerics: Numerics) -> Array:
        return model.engine.combine(routed, np.zeros_like(shared), factor, numerics)

    return changed(model, combine=combine)


def shared_gated(model: Laguna) -> Laguna:
    """The shared expert has a sigmoid gate, Qwen's; one without weights lets half of it through."""

    def combine(routed: Array, shared: Array, factor: float, numerics: Numerics) -> Array:
        half = shared * numerics.dtype.type(0.5)
        return model.engine.combine(routed, half, factor, numerics)

    return changed(model, combine=combine)


def dense_layer_as_sparse(model: Laguna) -> Laguna:
    """The dense layer is run as a sparse block of one expert: its output is scaled as well."""
    factor = model.config.moe_routed_scaling_factor

    def mlp(x: Array, weights: MLPWeights, numerics: Numerics) -> Array:
        out = model.engine.mlp(x, weights, numerics)
        if ".mlp.down_proj" not in weights.down_proj.name:
            return out  # the shared expert's
        return model.engine.combine(out, np.zeros_like(out), factor, numerics)

    return changed(model, mlp=mlp)


def experts_rotated(model: Laguna) -> Laguna:
    """Each expert's weights stand where the router expects the next one's."""

    def experts(
        x: Array, ids: Array, weights: Array, of: Sequence[MLPWeights], numerics: Numerics
    ) -> Array:
        return model.engine.experts(x, (ids + 1) % len(of), weights, of, numerics)

    return changed(model, experts=experts)


FAULTS = (
    Fault("embedding.ids_off_by_one", "model.embed_tokens", "model", "fatal", ids_off_by_one),
    Fault("head.tied", "lm_head", "model", "fatal", head_tied),
    Fault("experts.shared_doubled", "mlp", "sparse", "serious", shared_doubled),
    Fault("experts.shared_missing", "mlp", "sparse", "serious", shared_missing),
    Fault("experts.shared_gated", "mlp", "sparse", "serious", shared_gated),
    Fault("experts.dense_layer_as_sparse", "mlp", "dense", "fatal", dense_layer_as_sparse),
    Fault("experts.rotated", "mlp.experts", "sparse", "fatal", experts_rotated),
)
