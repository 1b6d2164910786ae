"""The verdict on a dump that is held against the oracle, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from laguna_ref.conformance import localise, routing
from laguna_ref.conformance.budget import Budget, Threshold
from laguna_ref.conformance.comparisons import Comparisons, Key, Oracle, compare, has_routing
from laguna_ref.conformance.mending import Mending
from laguna_ref.conformance.report import (
    CONFORMING,
    DIVERGES,
    INCONCLUSIVE,
    LogitsResult,
    Plots,
    Report,
    RoutingResult,
)
from laguna_ref.conformance.routing_of_dump import RoutingOfDump
from laguna_ref.numerics import Array


@dataclass
class Judgement:
    """One dump held against the oracle."""

    oracle: Oracle
    budget: Budget
    report: Report
    rate: float
    given: Threshold | None
    what: str
    """``dump`` or ``answer``, as the report calls it."""
    threshold: Threshold = field(init=False)

    def of(self, points: Mapping[str, Array]) -> Report:
        """Compares all that can be compared, fills in the report and concludes it."""
        oracle, report = self.oracle, self.report
        found = self._known(points)
        found = RoutingOfDump(oracle, self.budget, report).completed(found)
        if report.reason:
            return report
        replayable = has_routing(oracle, found)
        modes = _modes(oracle, found, replayable)
        self.threshold = self.given or self.budget.threshold(modes, self.rate)
        found, comparisons = self._compared(found, modes, replayable)
        units = self.threshold.floor_units
        report.threshold = units
        report.judged_by |= {
            "false_alarm_rate": self.threshold.rate,
            "false_alarm_rate_95": self.threshold.confident_rate,
            "modes": list(modes),
        }
        report.points = localise.point_results(oracle, comparisons, self.budget, units)
        report.missing = [op.point for op in oracle.operations if op.point not in found]
        contaminated = np.zeros(len(oracle.tokens), dtype=bool)
        if replayable:
            report.routing = routing.contract(oracle, comparisons, self.budget, units)
        else:
            report.left_out.append(f"replay and layers: the {self.what} does not hold all routing")
            contaminated = routing.contaminated(self.budget)
            report.routing = RoutingResult(contaminated=int(contaminated.sum()))
        report.plots = self._plots(comparisons, modes)
        report.logits = _logits(comparisons)
        return self._verdict(found, comparisons, contaminated)

    def _known(self, points: Mapping[str, Array]) -> dict[str, Array]:
        """Points of the model, in order of execution."""
        found = {}
        for op in self.oracle.operations:
            if op.point in points:
                found[op.point] = np.asarray(points[op.point])
        unknown = sorted(set(points) - set(found))
        if unknown:
            self.report.left_out.append(f"{unknown[0]}: the model has no such trace point")
        if not found:
            reason = "nothing to compare: no trace point of this model"
            self.report.conclude(INCONCLUSIVE, reason)
        return found

    def _compared(
        self, found: dict[str, Array], modes: tuple[str, ...], replayable: bool
    ) -> tuple[dict[str, Array], Comparisons]:
        """Whole prompts first: they show what is mistaken, before single operations use it."""
        whole = tuple(mode for mode in modes if mode not in ("added", "layers"))
        comparisons = compare(self.oracle, found, whole)
        mending = Mending(
            self.oracle, self.budget, self.threshold.floor_units, self.report.mistakes
        )
        unlike = mending.unlike(found, comparisons)
        if unlike:
            found = mending.mended(found, unlike, replayable)
            comparisons = compare(self.oracle, found, whole)
        rest = [mode for mode in modes if mode not in whole]
        return found, compare(self.oracle, found, rest, comparisons)

    def _plots(self, comparisons: Comparisons, modes: tuple[str, ...]) -> Plots:
        mode = "replayed" if "replayed" in modes else "free" if "free" in modes else "logits"
        rows = []
        for spec in self.oracle.model.config.layers:
            key = Key(mode, f"model.layers.{spec.index}", "l2")
            scale = self.budget.scale(key)
            if key in comparisons.per_token and scale:
                rows.append(comparisons.per_token[key] / scale)
        kl = comparisons.per_token.get(Key(mode if mode != "free" else "logits", "lm_head", "kl"))
        return Plots(
            heat=np.array(rows) if rows else None,
            kl=None if kl is None else np.square(kl) / 2,
            flips=routing.flips(self.oracle, comparisons, self.budget),
        )

    def _verdict(
        self, found: dict[str, Array], comparisons: Comparisons, contaminated: Array
    ) -> Report:
        report = self.report
        first = localise.first(report.points)
        if first is not None:
            report.first_divergence = localise.divergence(
                first, self.oracle, comparisons, self.budget, self.threshold.floor_units, found,
                report.case,
            )  # fmt: skip
            return report.conclude(
                DIVERGES,
                f"{first.point}, token {report.first_divergence.token}: "
                f"{first.floor_units:,.3g} floor units, a legal report stays under "
                f"{self.threshold.floor_units:.3g}",
            )
        if report.mistakes:
            return report.conclude(
                INCONCLUSIVE, f"the {self.what} is mistaken: {report.mistakes[0]}"
            )
        if not report.points:
            return report.conclude(INCONCLUSIVE, "nothing was compared")
        if "lm_head" in report.missing:
            return report.conclude(INCONCLUSIVE, "missing: lm_head, so the logits are unknown")
        if contaminated.mean() > 0.5:
            return report.conclude(
                INCONCLUSIVE,
                f"{int(contaminated.sum())} of {len(contaminated)} tokens follow, in most legal "
                "runs, another choice of experts; a trace with its routing can be replayed",
            )
        share = report.share_of_budget or 0.0
        return report.conclude(
            CONFORMING, f"{len(report.points)} comparisons, {share:.2g} of the budget used"
        )


def _logits(comparisons: Comparisons) -> LogitsResult | None:
    for mode in ("replayed", "logits"):
        each = comparisons.per_token.get(Key(mode, "lm_head", "kl"))
        if each is not None:
            kl, place = np.square(each) / 2, comparisons.places[mode]
            same = int((place == 0).sum())
            return LogitsResult(len(kl), float(kl.max()), float(kl.mean()), same, int(place.max()))
    return None


def _modes(oracle: Oracle, found: Mapping[str, Array], replayable: bool) -> tuple[str, ...]:
    if set(found) == {"lm_head"} and oracle.sparse_layers():
        return ("logits",)
    return ("added", "layers", "replayed") if replayable else ("added", "free", "logits")
