"""The verdict on a dump where no model is given: only the golden's own arrays are compared."""

from __future__ import annotations

import numpy as np

from laguna_ref.conformance import localise, mending, routing
from laguna_ref.conformance.budget import Budget, Threshold
from laguna_ref.conformance.comparisons import Comparisons
from laguna_ref.conformance.inputs import GoldenLike, logits_of
from laguna_ref.conformance.report import CONFORMING, DIVERGES, INCONCLUSIVE, Report
from laguna_ref.numerics import Array


def judge_without_model(
    golden: GoldenLike, points: dict[str, Array], budget: Budget, report: Report, rate: float,
    given: Threshold | None, what: str,
) -> Report:  # fmt: skip
    """Fills in ``report`` from free comparisons; nothing is replayed.

    ``given``: a threshold instead of the budget's own at ``rate``; ``what``: ``dump`` or
    ``answer``, as the report calls it.
    """
    report.left_out.append("replay, added error and mistakes of the dump: no model was given")
    comparisons = _comparisons(golden, points, report.mistakes)
    modes = ("logits",) if set(points) == {"lm_head"} else ("free", "logits")
    threshold = given or budget.threshold(modes, rate)
    report.threshold = threshold.floor_units
    report.judged_by |= {"false_alarm_rate": threshold.rate, "modes": list(modes)}
    contaminated = routing.contaminated(budget)
    report.routing.contaminated = int(contaminated.sum())
    report.points = localise.results_without_oracle(comparisons, budget, threshold.floor_units)
    first = localise.first(report.points)
    if first is not None:
        report.first_divergence = localise.divergence_without_oracle(
            first, comparisons, points, report.case
        )
        units = f"{first.floor_units:,.3g} floor units"
        return report.conclude(DIVERGES, f"{first.point}, token {first.token}: {units}")
    if report.mistakes:
        return report.conclude(INCONCLUSIVE, f"the {what} is mistaken: {report.mistakes[0]}")
    if not report.points:
        return report.conclude(INCONCLUSIVE, "nothing was compared")
    if "lm_head" not in points:
        return report.conclude(INCONCLUSIVE, "missing: lm_head")
    if contaminated.mean() > 0.5:
        tokens = int(contaminated.sum())
        return report.conclude(INCONCLUSIVE, f"{tokens} tokens contaminated, no replay")
    return report.conclude(CONFORMING, f"{len(report.points)} comparisons")


def _comparisons(golden: GoldenLike, points: dict[str, Array], mistakes: list[str]) -> Comparisons:
    """Of every point that the golden holds too; another shape is a mistake of the dump."""
    logits, at = logits_of(golden)
    expected = dict(golden.points)
    if logits is not None:
        expected["lm_head"] = logits
    comparisons = Comparisons()
    for point, array in points.items():
        if point not in expected or ".topk_" in point:
            continue
        wanted = np.asarray(expected[point])
        if point == "lm_head" and at is not None and len(array) == len(golden.case.tokens):
            array = array[np.asarray(at)]
        if array.size != wanted.size or len(array) != len(wanted):
            mistakes.append(mending.another_shape(point, array, wanted.shape))
            continue
        mode = "logits" if point == "lm_head" else "free"
        comparisons.vectors(mode, point, np.asarray(array), wanted)
    return comparisons
