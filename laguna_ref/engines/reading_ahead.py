"""An engine that has weights read from disk before they are computed with.

While one layer is computed, the next layer's dense weights are read; experts are read as soon as
the router has chosen them, all of a layer's at once. What has been asked for is not asked
for again, unless a thread had to wait for a page nevertheless: then memory is too small for the
checkpoint, and experts have been dropped again, nobody knows which. (Dense weights, which every
token uses, are the last to be dropped.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from laguna_ref.checkpoint import Checkpoint
from laguna_ref.engines import Engine, with_wrapped
from laguna_ref.memory_use import major_faults
from laguna_ref.numerics import Array, Numerics
from laguna_ref.weights import Experts, LayerWeights, MLPWeights, ModelWeights

LARGE = 1 << 28
"""Bytes of a checkpoint from which it is worth the trouble: a fraction of a second to read."""


def reading_ahead(engine: Engine, checkpoint: Checkpoint, weights: ModelWeights) -> Engine:
    """``engine`` with reading ahead, or itself for a checkpoint that is not large."""
    if checkpoint.nbytes < LARGE:
        return engine
    next_up = _NextLayer(checkpoint, weights)
    return with_wrapped(
        engine,
        embed=_after(next_up.reached, engine.embed),
        linear=_after(next_up.reached, engine.linear),
        experts=_ChosenExperts(checkpoint, engine),
    )


def _after(ask: Callable[..., None], operation: Callable[..., Array]) -> Callable[..., Array]:
    def asked_first(*args: Any) -> Array:
        ask(*args)
        return operation(*args)

    return asked_first


class _NextLayer:
    """Dense weights by the weight whose use says that their turn is next; asked for once."""

    def __init__(self, checkpoint: Checkpoint, weights: ModelWeights) -> None:
        self._checkpoint = checkpoint
        reached = [weights.embed_tokens, *(layer.self_attn.q_proj for layer in weights.layers)]
        wanted = [*(list(_dense(layer)) for layer in weights.layers), [weights.lm_head.name]]
        self._wanted = {at.name: names for at, names in zip(reached, wanted, strict=True)}

    def reached(self, _: Array, weight: Any, *rest: Any) -> None:
        for module in self._wanted.pop(weight.name, ()):
            self._checkpoint.will_need(module)


def _dense(layer: LayerWeights) -> Iterator[str]:
    """Modules of a layer that every token uses, in the order of use."""
    attention, mlp = layer.self_attn, layer.mlp
    for weight in (attention.q_proj, attention.k_proj, attention.v_proj, attention.g_proj):
        yield weight.name
    yield attention.o_proj.name
    if not isinstance(mlp, MLPWeights):
        yield mlp.gate.name
        mlp = mlp.shared_experts
    yield from _modules(mlp)


def _modules(mlp: MLPWeights) -> tuple[str, str, str]:
    return mlp.gate_proj.name, mlp.up_proj.name, mlp.down_proj.name


class _ChosenExperts:
    """The engine's ``experts``; their weights are asked for first."""

    def __init__(self, checkpoint: Checkpoint, engine: Engine) -> None:
        self._checkpoint = checkpoint
        self._engine = engine
        self._asked: WeakKeyDictionary[Experts, Array] = WeakKeyDictionary()

    def __call__(
        self,
        x: Array,
        ids: Array,
        weights: Array,
        expert_weights: Sequence[MLPWeights],
        numerics: Numerics,
    ) -> Array:
        trusted = self._ask(ids, expert_weights)
        before = major_faults()
        out = self._engine.experts(x, ids, weights, expert_weights, numerics)
        if trusted and major_faults() != before:
            self._asked.clear()
        return out

    def _ask(self, ids: Array, experts: Sequence[MLPWeights]) -> bool:
        """Asks for what is new; returns whether something was not, and should be in memory."""
        if not isinstance(experts, Experts):
            return False
        asked = self._asked.setdefault(experts, np.zeros(len(experts), dtype=bool))
        known = asked[ids]
        if not known.all():
            for expert in np.unique(ids[~known]).tolist():
                for module in _modules(experts[expert]):
                    self._checkpoint.will_need(module)
            asked[ids] = True
        return bool(known.any())
