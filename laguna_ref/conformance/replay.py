"""The oracle run with somebody else's choice of experts."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.engines import with_replaced
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.router import RouterSpec, scores_of, weights_of
from laguna_ref.trace import Recorder

Routing = Mapping[int, tuple[Array, Array | None]]
"""Per layer: ids [T, K], and weights [T, K] or None for the oracle's own of those ids."""
Seen = Callable[[str, Array], None]


def run(
    model: Laguna, tokens: Array, positions: Array, routing: Routing | None = None
) -> dict[str, Array]:
    """Every trace point of one prompt; layers named by ``routing`` go to its experts."""
    recorder = Recorder()
    (with_forced(model, routing) if routing else model)(tokens, positions=positions, trace=recorder)
    return {name: recorder[name] for name in recorder}


def watched(
    model: Laguna,
    tokens: Array,
    positions: Array,
    routing: Routing,
    seen: Callable[[str, Array], None],
) -> None:
    """The same run; each trace point is handed to ``seen`` when it is computed, and not kept."""
    with_forced(model, routing)(tokens, positions=positions, trace=_Handing(seen))


class _Handing(Recorder):
    """Hands on what it is given."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def record(self, name: str, value: Array) -> None:
        self.seen(name, value)


def with_forced(model: Laguna, routing: Routing) -> Laguna:
    """The same model, its router's choice replaced; for one call over exactly those tokens."""

    def route(
        x: Array, weight: Weight, bias: Array, spec: RouterSpec, numerics: Numerics
    ) -> tuple[Array, Array, Array]:
        logits, ids, weights = model.engine.route(x, weight, bias, spec, numerics)
        forced = routing.get(_layer_of(weight.name))
        if forced is None:
            return logits, ids, weights
        ids = forced[0].astype(np.int64)
        if forced[1] is None:
            weights = weights_of(ids, scores_of(logits, spec.score_func), spec, numerics)
        else:
            weights = numerics.cast(forced[1])
        return logits, ids, weights

    # A copy, not a model read anew: what a planted fault changed must stay changed.
    result = copy.copy(model)
    result.engine = with_replaced(model.engine, route=route)
    return result


def routing_in(points: Mapping[str, Any]) -> dict[int, tuple[Array, Array | None]]:
    """The routing that a trace holds, by layer; weights None where it has ids alone."""
    found = {}
    for name, ids in points.items():
        if name.endswith(".mlp.topk_ids"):
            weights = points.get(name.replace("topk_ids", "topk_weights"))
            found[_layer_of(name)] = (np.asarray(ids), weights)
    return found


def _layer_of(name: str) -> int:
    match = re.match(r"model\.layers\.(\d+)\.", name)
    assert match, name
    return int(match[1])
