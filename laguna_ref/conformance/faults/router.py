"""Faults of the router and of what its choice is scaled by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.conformance.faults.fault import Fault, NormInput, changed
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics, round_to_bf16
from laguna_ref.ops.router import RouterSpec, biased, choose, weights_of

Routed = tuple[Array, Array, Array]
"""Logits [T, E], ids [T, K], weights [T, K]."""


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


def bias_ignored(model: Laguna) -> Laguna:
    """The correction bias has no part in the choice."""

    def route(x: Array, weight: Weight, bias: Array, spec: RouterSpec, n: Numerics) -> Routed:
        return model.engine.route(x, weight, np.zeros_like(bias), spec, n)

    return changed(model, route=route)


def bias_in_weights(model: Laguna) -> Laguna:
    """The chosen experts' weights are their scores with the correction bias in them."""

    def route(x: Array, weight: Weight, bias: Array, spec: RouterSpec, n: Numerics) -> Routed:
        logits, ids, _ = model.engine.route(x, weight, bias, spec, n)
        scores = biased(model.engine.scores_of(logits, spec.score_func), bias, n)
        return logits, ids, weights_of(ids, scores, spec, n)

    return changed(model, route=route)


def one_expert_fewer(model: Laguna) -> Laguna:
    """One expert fewer is chosen: 7 where 8 are configured."""
    result = changed(model)
    result.router = replace(model.router, top_k=max(model.router.top_k - 1, 1))
    return result


def one_expert_more(model: Laguna) -> Laguna:
    """One expert more is chosen: 9 where 8 are configured."""
    result = changed(model)
    count = min(model.router.top_k + 1, model.config.num_experts)
    result.router = replace(model.router, top_k=count)
    return result


def ties_to_higher_index(model: Laguna) -> Laguna:
    """Of experts with equal scores the last is chosen; nothing changes without ties."""

    def route(x: Array, weight: Weight, bias: Array, spec: RouterSpec, n: Numerics) -> Routed:
        logits, _, _ = model.engine.route(x, weight, bias, spec, n)
        scores = model.engine.scores_of(logits, spec.score_func)
        backwards, weights = choose(scores[:, ::-1], bias[::-1], spec, n)
        return logits, scores.shape[1] - 1 - backwards, weights

    return changed(model, route=route)


def bf16_logits(model: Laguna) -> Laguna:
    """A model in float32 rounds its router's logits to bfloat16; in bfloat16 they always are."""

    def route(x: Array, weight: Weight, bias: Array, spec: RouterSpec, n: Numerics) -> Routed:
        logits = round_to_bf16(model.engine.route(x, weight, bias, spec, n)[0])
        scores = model.engine.scores_of(logits, spec.score_func)
        return logits, *choose(scores, bias, spec, n)

    return changed(model, route=route)


def of_unnormed_input(model: Laguna) -> Laguna:
    """The router reads the residual stream instead of the normed hidden state."""
    before = NormInput(model)

    def route(x: Array, weight: Weight, bias: Array, spec: RouterSpec, n: Numerics) -> Routed:
        # Large inputs bring scores down to 0, and 0 / 0 is a weight of 0 in ports that guard it.
        with np.errstate(invalid="ignore"):
            logits, ids, weights = model.engine.route(before.value(), weight, bias, spec, n)
        return logits, ids, np.nan_to_num(weights, copy=False)

    return changed(model, rms_norm=before.rms_norm, route=route)


_LOGITS, _IDS, _WEIGHTS = "mlp.gate", "mlp.topk_ids", "mlp.topk_weights"
FAULTS = (
    Fault("router.softmax_scores", _WEIGHTS, "sparse", "serious", softmax_scores),
    Fault("router.not_renormalised", _WEIGHTS, "sparse", "serious", not_renormalised),
    Fault("router.scaling_missing", "mlp", "sparse", "serious", scaling_missing),
    Fault("router.shared_scaled_too", "mlp", "sparse", "serious", shared_scaled_too),
    Fault("router.bias_ignored", _IDS, "sparse", "serious", bias_ignored),
    Fault("router.bias_in_weights", _WEIGHTS, "sparse", "serious", bias_in_weights),
    Fault("router.one_expert_fewer", _IDS, "sparse", "subtle", one_expert_fewer),
    Fault("router.one_expert_more", _IDS, "sparse", "subtle", one_expert_more),
    Fault("router.ties_to_higher_index", _IDS, "sparse", "subtle", ties_to_higher_index),
    Fault("router.bf16_logits", _LOGITS, "sparse", "subtle", bf16_logits),
    Fault("router.of_unnormed_input", _LOGITS, "sparse", "fatal", of_unnormed_input),
)
