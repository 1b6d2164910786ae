"""Faults of the router and of what its choice is scaled by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics


def softmax_scores(model: Laguna) -> Laguna:
    """Scores are a softmax over the experts instead of a sigmoid of each."""
    result = changed(model)
    result.router = replace(model.router, score_func="softmax")
    return result


def not_renormalised(model: Laguna) -> Laguna:
    """The chosen experts' scores are not divided by their sum."""
    result = changed(model)
    result.router = replace(model.router, norm_topk_prob=False)
    return result


def scaling_missing(model: Laguna) -> Laguna:
    """The routed sum is not scaled: routed_scaling_factor, read by the wrong key, is 1."""

    def combine(routed: Array, shared: Array, factor: float, numerics: Numerics) -> Array:
        return model.engine.combine(routed, shared, 1.0, numerics)

    return changed(model, combine=combine)


def shared_scaled_too(model: Laguna) -> Laguna:
    """The scaling factor multiplies the shared expert as well."""

    def combine(routed: Array, shared: Array, factor: float, numerics: Numerics) -> Array:
        return model.engine.combine(routed + shared, np.zeros_like(shared), factor, numerics)

    return changed(model, combine=combine)


FAULTS = (
    Fault("router.softmax_scores", "mlp.topk_weights", "sparse", "serious", softmax_scores),
    Fault("router.not_renormalised", "mlp.topk_weights", "sparse", "serious", not_renormalised),
    Fault("router.scaling_missing", "mlp", "sparse", "serious", scaling_missing),
    Fault("router.shared_scaled_too", "mlp", "sparse", "serious", shared_scaled_too),
)
