"""The choices of experts in a golden, and by how much each was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.ops import router
from laguna_ref.trace import Recorder
from laguna_ref.weights import SparseMLPWeights

KEPT = ("mlp.gate", "mlp.topk_ids", "mlp.topk_weights")


@dataclass(frozen=True)
class Routing:
    """One sparse layer's choices."""

    ids: Array
    """[T, K] int64, in descending order of selection score, ties to the lower index."""
    weights: Array
    """[T, K] in the numerics' type."""
    margin: Array
    """[T] float64: the K-th selection score (score plus bias) less the K+1-th; inf if K is E."""


def routing_of(model: Laguna, recorded: Recorder) -> dict[int, Routing]:
    """By layer index, from a run in which the points of ``KEPT`` were recorded."""
    return {
        index: Routing(
            recorded[f"model.layers.{index}.mlp.topk_ids"],
            recorded[f"model.layers.{index}.mlp.topk_weights"],
            margins(model, index, recorded[f"model.layers.{index}.mlp.gate"]),
        )
        for index, _ in sparse_layers(model)
    }


def margins(model: Laguna, layer: int, logits: Array) -> Array:
    """[T] float64, of router logits [T, E] of a sparse layer, by the model's own engine."""
    weights = dict(sparse_layers(model))[layer]
    spec, top_k = model.router, model.router.top_k
    if top_k == logits.shape[1]:
        return np.full(len(logits), np.inf)
    with model.engine.computing(model.threads):
        scores = model.engine.scores_of(logits, spec.score_func)
        selection = router.biased(scores, weights.e_score_correction_bias, model.numerics)
    return router.margins(selection, top_k)


def sparse_layers(model: Laguna) -> Iterator[tuple[int, SparseMLPWeights]]:
    """Index and weights of each layer that has a router."""
    for spec, layer in zip(model.config.layers, model.weights.layers, strict=True):
        if isinstance(layer.mlp, SparseMLPWeights):
            yield spec.index, layer.mlp


def patterns(model: Laguna) -> tuple[str, ...]:
    """Of the trace points that ``routing_of`` needs; none for a model without routers."""
    sparse = any(True for _ in sparse_layers(model))
    return tuple(f"model.layers.*.{name}" for name in KEPT) if sparse else ()


def smallest_margin(routing: Mapping[int, Routing]) -> tuple[float, int, int] | None:
    """(margin, layer, token) of the nearest tie; None without routers."""
    found = [
        (float(layer.margin.min()), index, int(layer.margin.argmin()))
        for index, layer in routing.items()
    ]
    return min(found) if found else None
