"""The top-k router: which experts a token goes to, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.activations import sigmoid, softmax, softplus
from laguna_ref.ops.linear import linear


@dataclass(frozen=True)
class RouterSpec:
    """The config's say in routing."""

    top_k: int
    """num_experts_per_tok."""
    score_func: str
    """moe_router_score_func: sigmoid, softmax or sqrtsoftplus."""
    logit_softcapping: float
    """moe_router_logit_softcapping; 0 for none."""
    norm_topk_prob: bool


def route(
    x: Array, weight: Weight, bias: Array, spec: RouterSpec, numerics: Numerics
) -> tuple[Array, Array, Array]:
    """Router logits, the experts chosen, and their weights.

    ``logits = x weight^T``, soft-capped if the config says so; ``scores = sigmoid(logits)``;
    the K experts with the greatest ``scores + bias`` are chosen, in descending order, ties to
    the lower index; their weights are ``scores`` (without the bias) divided by their sum.

    Shapes: x [T, D], weight [E, D], bias [E] -> logits [T, E], ids int64 [T, K], weights
    [T, K].
    Dtypes: all in the numerics' type; under bfloat16 numerics the product is rounded before
    the sigmoid sees it, as released.
    Rounds at: linear, router.bias, router.weights.
    Follows: Transformers ``LagunaTopKRouter``; the bias is DeepSeek-V3's
    (arXiv 2412.19437, section 2.1.2).
    Easy to get wrong: softmax in place of sigmoid, the bias left in the weights, no
    renormalisation.
    """
    logits = soft_cap(linear(x, weight, numerics), spec.logit_softcapping)
    ids, weights = choose(scores_of(logits, spec.score_func), bias, spec, numerics)
    return logits, ids, weights


def choose(scores: Array, bias: Array, spec: RouterSpec, numerics: Numerics) -> tuple[Array, Array]:
    """The second half of ``route``: from scores [T, E] to ids and weights, both [T, K]."""
    selection = biased(scores, bias, numerics)
    ids = np.argsort(-selection, axis=-1, kind="stable")[:, : spec.top_k]
    return ids, weights_of(ids, scores, spec, numerics)


def biased(scores: Array, bias: Array, numerics: Numerics) -> Array:
    """What the choice goes by: scores [T, E] plus the bias [E]. Rounds at: router.bias."""
    return scores + numerics.round_at("router.bias", numerics.cast(bias))


def margins(selection: Array, top_k: int) -> Array:
    """How far the K-th of the scores chosen by, [T, E], stands above the K+1-th: float64 [T].

    Infinite if all experts are chosen.
    """
    if top_k == selection.shape[1]:
        return np.full(len(selection), np.inf)
    ranked = -np.sort(-selection.astype(np.float64), axis=-1)
    return np.asarray(ranked[:, top_k - 1] - ranked[:, top_k])


def weights_of(ids: Array, scores: Array, spec: RouterSpec, numerics: Numerics) -> Array:
    """The chosen experts' weights [T, K]: their scores, if the config says so normed.

    They are added up one after another, so that their sum is the same everywhere.
    Rounds at: router.weights.
    """
    weights = np.take_along_axis(scores, ids, axis=-1)
    if spec.norm_topk_prob:
        total = weights[:, 0]
        for k in range(1, spec.top_k):
            total = total + weights[:, k]
        weights = weights / total[:, None]
    return numerics.round_at("router.weights", weights)


def soft_cap(logits: Array, cap: float) -> Array:
    """``cap * tanh(logits / cap)``, elementwise; unchanged for a cap of zero."""
    return logits if cap == 0 else np.tanh(logits / logits.dtype.type(cap)) * logits.dtype.type(cap)


def scores_of(logits: Array, score_func: str) -> Array:
    """Scores from logits, before the bias: sigmoid, softmax or sqrt(softplus).

    Shapes: logits [T, E] -> [T, E].
    Follows: Transformers ``LagunaTopKRouter`` (sigmoid), vLLM ``laguna.py`` (the others).
    """
    if score_func == "sigmoid":
        return sigmoid(logits)
    if score_func == "softmax":
        return softmax(logits)
    return np.sqrt(softplus(logits))
