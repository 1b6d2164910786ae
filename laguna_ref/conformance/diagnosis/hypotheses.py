"""What may be wrong: faults of the catalogue, continuous ones with a value to be found, and pairs.

A hypothesis plants itself in any model. ``values`` are settings of the model that it changes, as
a report names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from laguna_ref.conformance.faults import CATALOGUE, DIALS
from laguna_ref.conformance.faults.dial import Dial
from laguna_ref.model import Laguna

Setting = float | int | str | bool | None


@dataclass(frozen=True)
class Hypothesis:
    """One or two faults."""

    names: tuple[str, ...]
    plant: Callable[[Laguna], Laguna]
    point: str | None
    """Where the first of them first shows."""
    references: tuple[str, ...] = ()
    fitted: int = 0
    """Numbers that were fitted; of two that explain as much, the one with fewer comes first."""
    values: tuple[tuple[str, Setting], ...] = ()
    """Known beforehand; others are read off the planted model."""
    parts: tuple[Hypothesis, ...] = ()
    """Of two faults at once, each."""

    @property
    def name(self) -> str:
        """As a report prints it."""
        return " and ".join(self.names)


def named(model: Laguna) -> Iterator[Hypothesis]:
    """Every fault of the catalogue that can be planted in this model at all."""
    for fault in CATALOGUE.values():
        try:
            fault.plant(model)
            point = fault.first_point(model)
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            continue  # a fault of something that this model does not have
        yield Hypothesis((fault.name,), fault.plant, point, fault.references)


def dials(model: Laguna) -> Iterator[tuple[Dial, float]]:
    """Every continuous fault, with the value that this model has."""
    for dial in DIALS:
        configured = dial.configured(model)
        if configured is not None:
            yield dial, configured


def turned(model: Laguna, dial: Dial, value: float) -> Hypothesis:
    """A continuous fault at one value."""
    return Hypothesis(
        (dial.name,), lambda m: dial.plant(m, value), dial.first_point(model), (), 1,
        ((dial.name.rpartition(".")[2], value),),
    )  # fmt: skip


def both(first: Hypothesis, second: Hypothesis) -> Hypothesis:
    """Two at once."""
    return Hypothesis(
        (*first.names, *second.names), lambda m: second.plant(first.plant(m)), first.point,
        (*first.references, *second.references), first.fitted + second.fitted,
        parts=(first, second),
    )  # fmt: skip


def changed_by(model: Laguna, hypothesis: Hypothesis) -> dict[str, tuple[Setting, Setting]]:
    """What it sets: key -> (used, configured); a fitted factor that is no setting among it."""
    result: dict[str, tuple[Setting, Setting]] = {}
    for part in hypothesis.parts or (hypothesis,):
        configured = {dial.name: value for dial, value in dials(model)}
        found = settings(model, part.plant(model))
        if not found:  # a factor that is no setting: 1 where nothing is wrong
            found = {key: (value, configured.get(part.names[0])) for key, value in part.values}
        for key, values in found.items():
            known = key in result and result[key] != values
            result[f"{part.name}: {key}" if known else key] = values
    return result


def settings(model: Laguna, planted: Laguna) -> dict[str, tuple[Setting, Setting]]:
    """What the planted model is set to where it differs from the model: key -> (used, configured).

    Of the config, the router, and the RoPE parameters of each kind of attention, which is named
    where both are set otherwise.
    """
    result: dict[str, tuple[Setting, Setting]] = {}
    pairs: list[tuple[str, Any, Any]] = [
        ("config", model.config, planted.config), ("router", model.router, planted.router),
    ]  # fmt: skip
    pairs += [
        (ours.attention, ours.rope, theirs.rope)
        for ours, theirs in zip(model.config.layers, planted.config.layers, strict=True)
    ]
    for where, ours, theirs in pairs:
        if ours is None or theirs is None:
            continue
        for field in fields(ours):
            old, new = getattr(ours, field.name), getattr(theirs, field.name)
            if old != new and isinstance(new, float | int | str):
                known = result.get(field.name, (new, old)) != (new, old)
                result[f"{where}.{field.name}" if known else field.name] = (new, old)
    return result
