"""How badly a model fits what was observed: the error that no legal run shows.

Legal variations of the oracle give every trace point its floor, the greatest distance that any of
them shows (for logits, every token its own). The misfit of a model is the sum over points and
tokens of

    log(distance / floor), where that is positive.

The logarithm keeps one token that went to another expert, or one cached value that fell to another
FP8 code, from outweighing everything else: a model that explains the backend brings *every*
token near the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from laguna_ref.conformance.budget import PromptRuns
from laguna_ref.conformance.diagnosis import distances
from laguna_ref.conformance.diagnosis.distances import Distances
from laguna_ref.conformance.operations import Points
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.replay import run
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array

Plant = Callable[[Laguna], Laguna]
Floor = tuple[dict[str, Array], list[float]]
"""The floor, and the misfits of legal runs that it was not measured by."""
Floors = dict[Any, Floor]
"""Those measured already, of one model, by all that they depend on."""
OTHERS = 1_000_000
"""First seed of legal runs with a fault planted: none that the floor was measured by."""


@dataclass(frozen=True)
class Observation:
    """What a backend computed for one prompt."""

    tokens: Array
    """int64 [T]"""
    positions: Array
    """int64 [T]"""
    points: Points
    """Trace points, ``lm_head`` alone or among them."""
    partial: bool = False
    """NaN in ``lm_head`` is what it does not show: an endpoint's log-probabilities."""


@dataclass
class Evidence:
    """One observation, one way to look at it, and the floor of that way."""

    prompt: PromptRuns
    observed: Observation
    way: str
    """``trace`` or ``logits``."""
    floor: dict[str, Array] = field(init=False)
    legal: list[float] = field(init=False)
    """Misfits of legal runs that the floor was not measured by."""

    def measure(self, fitted: int, held_out: int, floors: Floors) -> None:
        """Runs the legal variations, or takes what they showed from ``floors``."""
        shown = (
            np.isnan(np.asarray(self.observed.points["lm_head"], np.float64)).tobytes()
            if self.way == "logits"
            else tuple(sorted(self.observed.points))
        )
        key = (self.observed.tokens.tobytes(), self.observed.positions.tobytes(), self.way,
               shown, str(self.prompt.precision), fitted, held_out)  # fmt: skip
        if key not in floors:
            floors[key] = self._measured(fitted, held_out)
        self.floor, self.legal = floors[key]

    def _measured(self, fitted: int, held_out: int) -> Floor:
        runs = [self._legal(seed) for seed in range(fitted)]
        least = self.prompt.precision.unit_roundoff
        self.floor = {
            point: np.maximum(self._greatest([run[point] for run in runs]), least)
            for point in runs[0]
        }
        return self.floor, [self.legal_run(seed) for seed in range(fitted, fitted + held_out)]

    def legal_run(self, seed: int) -> float:
        """The misfit of the legal variation of a seed."""
        return self._excess(self._legal(seed))

    def misfit(self, model: Laguna) -> float:
        """Of a model: the truth, or the truth with a fault planted."""
        return self._excess(self._distances(model, self.observed.points))

    @cached_property
    def by_point(self) -> dict[str, float]:
        """The misfit of the truth at each trace point."""
        away = self._distances(self.truth, self.observed.points)
        return {point: self._excess({point: of}) for point, of in away.items()}

    @property
    def deviation(self) -> float:
        """The misfit of the truth, all of it at ``suspects``."""
        return float(sum(self.by_point.values()))

    @cached_property
    def suspects(self) -> frozenset[str]:
        """Trace points at which what was observed lies beyond the floor of the truth."""
        return frozenset(point for point, misfit in self.by_point.items() if misfit > 0)

    def misfit_of_suspects(self, model: Laguna) -> float:
        """Its part at those: a fault that explains anything lessens it."""
        return self._excess(self._distances(model, self.observed.points, self.suspects))

    def nearest(self, plant: Plant, runs: int) -> float:
        """The misfit of a fault in whichever of several legal runs comes nearest, token by token.

        A value that falls to another FP8 code, or a token that goes to another expert, sends all
        that follows another way: one run in float64 is not the only one a port may follow.
        """
        points = self.observed.points
        away = [self._distances(plant(self.truth), points)]
        away += [self._distances(plant(self.prompt.variation(seed)), points)
                 for seed in range(OTHERS, OTHERS + runs)]  # fmt: skip
        return self._excess({point: np.min([run[point] for run in away], axis=0)
                             for point in away[0]})  # fmt: skip

    def own_noise(self, plant: Plant, runs: int) -> tuple[float, list[float]]:
        """How far what was observed lies from the model with a fault, and how far its own legal
        runs do: the fault may round, and no run then foretells another."""
        faulty = plant(self.truth)
        own = [self._excess(self._legal(seed, plant)) for seed in range(OTHERS, OTHERS + runs)]
        return self.misfit(faulty), own

    def smooth(self, model: Laguna) -> float:
        """That part without the floor's edge, for whoever looks for the least of it."""
        away = self._distances(model, self.observed.points, self.suspects)
        return float(sum(np.log1p(np.square(d / self.floor[p])).sum() for p, d in away.items()))

    @property
    def truth(self) -> Laguna:
        """The oracle in float64."""
        return self.prompt.oracle.model

    def _greatest(self, runs: list[Array]) -> Array:
        """Of each token; of all tokens where nothing is inherited from one to the next."""
        each = np.max(runs, axis=0)
        return np.full_like(each, each.max()) if self.way == "trace" else each

    def _excess(self, away: Distances) -> float:
        return float(sum(
            np.maximum(np.log(np.maximum(d, distances.TINY) / self.floor[point]), 0).sum()
            for point, d in away.items()
        ))  # fmt: skip

    def _legal(self, seed: int, plant: Plant = lambda model: model) -> Distances:
        """Of a legal run from the truth, both with the fault where there is one."""
        where = (self.observed.tokens, self.observed.positions)
        points: Points = run(plant(self.prompt.variation(seed)), *where)
        if self.way == "logits":
            hidden = np.isnan(np.asarray(self.observed.points["lm_head"], np.float64))
            if hidden.shape == points["lm_head"].shape:
                points = {"lm_head": np.where(hidden, np.nan, points["lm_head"])}
        else:
            points = {name: a for name, a in points.items() if name in self.observed.points}
        return self._distances(plant(self.truth), points)

    def _distances(
        self, model: Laguna, points: Points, only: Collection[str] | None = None
    ) -> Distances:
        tokens, positions = self.observed.tokens, self.observed.positions
        if self.way == "logits":
            return distances.of_logits(model, tokens, positions, points["lm_head"])
        return distances.by_operation(model, tokens, positions, points, only)


def gather(
    model: Laguna, observations: Sequence[Observation], precision: Precision, way: str,
    fitted: int, held_out: int, floors: Floors | None = None,
) -> list[Evidence]:  # fmt: skip
    """Evidence of each observation that can be looked at this way, its floor measured."""
    result = []
    for observed in observations:
        if way == "logits" and not _shows_logits(observed):
            continue
        if way == "trace" and set(observed.points) <= {"lm_head"}:
            continue
        prompt = PromptRuns(model, observed.tokens, observed.positions, precision)
        evidence = Evidence(prompt, observed, way)
        evidence.measure(fitted, held_out, {} if floors is None else floors)
        result.append(evidence)
    return result


def _shows_logits(observed: Observation) -> bool:
    """Whether there are logits, and any token of which two are known."""
    if "lm_head" not in observed.points:
        return False
    known = np.isfinite(np.asarray(observed.points["lm_head"], np.float64))
    return bool((known.sum(axis=-1) > 1).any())
