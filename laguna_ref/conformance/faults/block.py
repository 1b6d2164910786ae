"""Faults of norms, embedding, head, and of how experts are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics
from laguna_ref.weights import MLPWeights


def norm_eps_1e_5(model: Laguna) -> Laguna:
    """Every norm adds 1e-5 to the mean square, whatever rms_norm_eps says."""
    result = changed(model)
    result.config = replace(model.config, rms_norm_eps=1e-5)
    return result


def norm_plus_one(model: Laguna) -> Laguna:
    """Norms multiply by 1 + weight, Gemma's convention."""

    def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        return model.engine.rms_norm(x, weight.astype(np.float32) + 1, eps, numerics)

    return changed(model, rms_norm=rms_norm)


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


def experts_rotated(model: Laguna) -> Laguna:
    """Each expert's weights stand where the router expects the next one's."""

    def experts(
        x: Array, ids: Array, weights: Array, of: Sequence[MLPWeights], numerics: Numerics
    ) -> Array:
        return model.engine.experts(x, (ids + 1) % len(of), weights, of, numerics)

    return changed(model, experts=experts)


FAULTS = (
    Fault("norm.eps_1e_5", "input_layernorm", "all", "subtle", norm_eps_1e_5),
    Fault("norm.plus_one", "input_layernorm", "all", "fatal", norm_plus_one),
    Fault("embedding.ids_off_by_one", "model.embed_tokens", "model", "fatal", ids_off_by_one),
    Fault("head.tied", "lm_head", "model", "fatal", head_tied),
    Fault("experts.shared_doubled", "mlp", "sparse", "serious", shared_doubled),
    Fault("experts.shared_missing", "mlp", "sparse", "serious", shared_missing),
    Fault("experts.rotated", "mlp.experts", "sparse", "fatal", experts_rotated),
)
