"""Routing as a contract: which choices of experts may differ from the oracle's.

A choice is judged by what it costs: how far the least score chosen lies below the greatest one
left out, by the oracle's scores. Within the measured noise of scores there it is *excused*; what
follows is judged by replaying it. Outside it is a *violation*. Weights, and their sum, are judged
apart from the choice. Where a dump has no routing, nothing can be replayed, and a token that has
itself gone to other experts, or follows one that has, in most legal runs, is *contaminated*.
"""

from __future__ import annotations

import numpy as np

from laguna_ref.conformance.budget import Budget
from laguna_ref.conformance.comparisons import Comparisons, Key, Oracle
from laguna_ref.conformance.report import RoutingResult
from laguna_ref.numerics import Array
from laguna_ref.ops import router


def deficit_key(layer: int, mode: str = "replayed") -> Key:
    """The comparison that a layer's choice is judged by."""
    return Key(mode, f"model.layers.{layer}.mlp.topk_ids", "deficit")


def contract(
    oracle: Oracle, comparisons: Comparisons, budget: Budget, threshold: float
) -> RoutingResult:
    """Counts of a dump that has its routing."""
    result = RoutingResult()
    for layer in oracle.sparse_layers():
        key = deficit_key(layer)
        scale = budget.scale(key)
        if key in comparisons.per_token and scale is not None:
            units = comparisons.per_token[key] / scale
            result.compared += len(units)
            result.excused += int(((units > 0) & (units <= threshold)).sum())
            result.violations += int((units > threshold).sum())
        weights = [f"model.layers.{layer}.mlp.topk_weights", "added"]
        for statistic, counter in (("l2", "weights_outside"), ("sum", "not_normalised")):
            at = Key(weights[1], weights[0], statistic)
            scale = budget.scale(at)
            if at in comparisons.values and scale is not None:
                outside = comparisons.values[at].value > threshold * scale
                setattr(result, counter, getattr(result, counter) + int(outside))
    return result


def contaminated(budget: Budget) -> Array:
    """Which tokens follow another choice in most legal runs, bool [T]."""
    return np.asarray(budget.contaminated > 0.5)


def flips(
    oracle: Oracle, comparisons: Comparisons, budget: Budget
) -> list[tuple[int, int, float, bool]]:
    """(layer, token, margin over noise, whether the choice differed) of every choice."""
    result = []
    for layer in oracle.sparse_layers():
        key = deficit_key(layer)
        scale = budget.scale(key)
        if key in comparisons.per_token and scale is not None:
            scores = comparisons.scores[key.mode, key.point]
            margin = router.margins(scores, oracle.model.router.top_k) / scale
            differs = comparisons.per_token[key] > 0
            result += [
                (layer, token, float(margin[token]), bool(differs[token]))
                for token in range(len(margin))
            ]
    return result
