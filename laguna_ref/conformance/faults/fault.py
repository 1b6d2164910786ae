"""What a fault is, and how a model is changed without touching the one it came from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from laguna_ref.config import LayerSpec
from laguna_ref.engines import with_replaced
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics
from laguna_ref.rope_spec import RopeSpec

Plant = Callable[[Laguna], Laguna]


@dataclass(frozen=True)
class Fault:
    """A named bug: ``plant`` gives a model that has it, on any engine and in any numerics."""

    name: str
    point: str
    """Where it first shows: a trace point of a layer, without ``model.layers.N.``."""
    layers: str
    """The layers it shows in: ``all``, or one of the names that ``kinds_of`` gives a layer;
    ``model`` for a point that belongs to no layer, ``generation`` for none at all."""
    severity: str
    """``fatal``: garbage; ``serious``: worse text; ``subtle``: hard to see in text."""
    plant: Plant
    references: tuple[str, ...] = ()
    """Public reports of it."""

    @property
    def description(self) -> str:
        """The first line of its function's docstring."""
        return (self.plant.__doc__ or "").partition("\n")[0]

    def first_point(self, model: Laguna) -> str | None:
        """The full name of the trace point in this model; None where it has none."""
        return first_point(model, self.layers, self.point)


def first_point(model: Laguna, layers: str, point: str) -> str | None:
    """The full name of a point in the first of the layers that ``Fault.layers`` tells."""
    if layers == "model":
        return point
    for spec in model.config.layers:
        if layers in kinds_of(model, spec):
            return f"model.layers.{spec.index}.{point}"
    return None


def kinds_of(model: Laguna, spec: LayerSpec) -> set[str]:
    """What a layer is: ``full_attention``, ``sparse``, ``fp8`` (its cache), ``packed`` and
    ``int4`` or ``int8`` (its routed experts) and so on."""
    kinds = {"all", spec.attention, spec.mlp}
    if model.kv_formats[spec.index].fp8:
        kinds.add("fp8")
    if spec.mlp == "sparse" and spec.weight_format.bits:
        kinds |= {"packed", f"int{spec.weight_format.bits}"}
    return kinds


def changed(model: Laguna, **functions: Any) -> Laguna:
    """A copy that shares the weights, some of its engine's functions replaced."""
    result = copy.copy(model)
    if functions:
        result.engine = with_replaced(model.engine, **functions)
    return result


def with_rope(model: Laguna, kind: str, **changes: Any) -> Laguna:
    """A copy whose layers of one kind of attention have other RoPE parameters."""
    result = changed(model)
    layers = tuple(
        replace(spec, rope=replace(spec.rope, **changes)) if spec.attention == kind else spec
        for spec in model.config.layers
    )
    result.config = replace(model.config, layers=layers)
    return result


def rope_of(model: Laguna, kind: str) -> RopeSpec:
    """The RoPE parameters of one kind of attention; another's where the model has no such layer."""
    layers = model.config.layers
    return next((spec.rope for spec in layers if spec.attention == kind), layers[0].rope)


class NormInput:
    """The hidden state before its norm, for a fault that reads it in place of the normed one.

    ``rms_norm`` takes the engine's place and remembers the vectors [T, D] that it was last given;
    norms of heads come between them and their readers, and are let through.
    """

    def __init__(self, model: Laguna) -> None:
        self._engine = model.engine
        self._last: Array | None = None

    def rms_norm(self, x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
        """The engine's own norm."""
        if x.ndim == 2:
            self._last = x
        return self._engine.rms_norm(x, weight, eps, numerics)

    def value(self) -> Array:
        """What the last norm of hidden states was given, [T, D]."""
        assert self._last is not None, "a norm comes before whatever reads its result"
        return self._last
