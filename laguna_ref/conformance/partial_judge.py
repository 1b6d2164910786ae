"""The verdict on log-probabilities that are known in part."""

from __future__ import annotations

from typing import Any

import numpy as np

from laguna_ref.conformance import guards, localise, mending, partial, partial_budget, statistics
from laguna_ref.conformance.budget import FALSE_ALARM_RATE, Threshold
from laguna_ref.conformance.comparisons import Oracle
from laguna_ref.conformance.inputs import DumpLike, GoldenLike
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.partial import MODE, STATISTICS, Seen, View
from laguna_ref.conformance.partial_budget import PartialBudget
from laguna_ref.conformance.precision import Precision, precision_by_name
from laguna_ref.conformance.report import (
    CONFORMING,
    DIVERGES,
    INCONCLUSIVE,
    Divergence,
    LogitsResult,
    PointResult,
    Report,
    RoutingResult,
)
from laguna_ref.conformance.variations import truth_of
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array

KIND = "logprobs"


def is_partial(dump: DumpLike) -> bool:
    """Whether a dump declares its logits to be log-probabilities, NaN where it has none."""
    return bool(dump.meta.get("logits") == KIND)


def window_of(dump: DumpLike) -> Seen:
    """What the backend shows; ``logprobs_k`` of the metadata says how many likeliest tokens."""
    stated = dump.meta.get("logprobs_k")
    logprobs = np.asarray(dump.points["lm_head"], np.float64)
    return partial.seen_in(logprobs, None if stated in (None, "") else int(stated))


def judge(
    golden: GoldenLike,
    dump: DumpLike,
    report: Report,
    model: Laguna | None,
    *,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    threshold: Threshold | None = None,
    budget: PartialBudget | None = None,
) -> Report:
    """Fills in ``report``; measures the budget where none is given. The prompt has been checked.

    Raises InputError for a precision nobody knows.
    """
    problem = _problem(dump, model)
    if problem is not None:
        return report.conclude(INCONCLUSIVE, problem)
    assert model is not None
    found = np.asarray(dump.points["lm_head"], np.float64)
    improper = partial.problem_of(found)
    tokens, positions = np.asarray(golden.case.tokens), guards.positions_of(golden)
    if improper is not None or found.shape != (len(tokens), model.config.vocab_size):
        wanted = (len(tokens), model.config.vocab_size)
        return report.conclude(
            INCONCLUSIVE, improper or mending.another_shape("lm_head", found, wanted)
        )
    seen = window_of(dump)
    if budget is None:
        precision = guards.declared_precision(dump) or _precision_of(golden)
        budget = partial_budget.measure(model, tokens, positions, precision, seen)
    oracle = Oracle(truth_of(model, budget.precision, Matrices()), tokens, positions)
    return _judged(report, oracle, found, seen, budget,
                   threshold or budget.threshold(false_alarm_rate))  # fmt: skip


def _problem(dump: DumpLike, model: Laguna | None) -> str | None:
    if "lm_head" not in dump.points:
        return "missing: lm_head, so no log-probability is known"
    if model is None:
        return "log-probabilities are judged with the model, and none was given"
    return None


def _precision_of(golden: GoldenLike) -> Precision:
    if golden.budget_meta is None:
        return precision_by_name("float32")
    return Precision.from_json(golden.budget_meta["precision"])


def _judged(
    report: Report, oracle: Oracle, found: Array, seen: Seen, budget: PartialBudget,
    threshold: Threshold,
) -> Report:  # fmt: skip
    expected = partial.log_softmax(oracle.free["lm_head"])
    view = partial.view(found, expected, seen)
    report.threshold = threshold.floor_units
    report.judged_by |= {
        "precision": budget.precision.to_json(), "runs": budget.runs,
        "false_alarm_rate": threshold.rate, "false_alarm_rate_95": threshold.confident_rate,
        "modes": [MODE], "logprobs_k": seen.k,
    }  # fmt: skip
    report.points = [_point(name, view, budget, threshold.floor_units, seen) for name in STATISTICS]
    report.logits = _logits(view, found, expected, seen)
    contaminated = (budget.contaminated > 0.5) & seen.rows
    report.routing = RoutingResult(contaminated=int(contaminated.sum()))
    report.left_out.append(
        f"everything but log-probabilities: {seen.k} a token are shown of {found.shape[1]}"
    )
    unknown = np.flatnonzero(~seen.rows)
    if len(unknown):
        report.left_out.append(
            f"{len(unknown)} of {len(found)} tokens, the first at {unknown[0]}: nothing is known"
        )
    return _verdict(report, oracle, view, found, expected, seen, contaminated)


def _point(
    name: str, view: View, budget: PartialBudget, threshold: float, seen: Seen
) -> PointResult:
    value = view.values[name]
    units = value / budget.scale(name)
    status = "inside" if units <= threshold else "outside"
    return PointResult("lm_head", MODE, name, value, units, view.tokens[name], status)


def _logits(view: View, found: Array, expected: Array, seen: Seen) -> LogitsResult:
    rows = np.flatnonzero(seen.rows)
    shown = np.where(np.isnan(found[rows]), -np.inf, found[rows])
    kl = np.square(view.per_token["kl"][rows]) / 2
    same = int((shown.argmax(axis=1) == expected[rows].argmax(axis=1)).sum())
    greatest = int(statistics.ranks(shown, expected[rows]).max())
    return LogitsResult(len(rows), float(kl.max()), float(kl.mean()), same, greatest)


def _verdict(
    report: Report, oracle: Oracle, view: View, found: Array, expected: Array, seen: Seen,
    contaminated: Array,
) -> Report:  # fmt: skip
    outside = [point for point in report.points if point.status == "outside"]
    assert report.threshold is not None
    if outside:
        worst = max(outside, key=lambda point: point.floor_units)
        report.first_divergence = _divergence(report, oracle, worst, view, found, expected)
        return report.conclude(
            DIVERGES,
            f"lm_head, token {report.first_divergence.token}: {worst.floor_units:,.3g} floor "
            f"units ({worst.statistic}), a legal report stays under {report.threshold:.3g}",
        )
    if contaminated.sum() > 0.5 * seen.rows.sum():
        return report.conclude(
            INCONCLUSIVE,
            f"{int(contaminated.sum())} of {int(seen.rows.sum())} tokens follow, in most legal "
            "runs, another choice of experts; a trace with its routing can be replayed",
        )
    share = report.share_of_budget or 0.0
    return report.conclude(
        CONFORMING,
        f"log-probabilities of {int(seen.rows.sum())} tokens, {seen.k} each, "
        f"{share:.2g} of the budget used",
    )


def _divergence(
    report: Report, oracle: Oracle, point: PointResult, view: View, found: Array, expected: Array
) -> Divergence:
    """The token, and the word of the vocabulary at which it shows."""
    token = point.token if point.token >= 0 else view.tokens["greatest"]
    shown = np.flatnonzero(~np.isnan(found[token]))
    mine, theirs = expected[token], found[token]
    column = int(shown[np.abs(theirs[shown] - mine[shown]).argmax()])
    value: Any = float(theirs[column])
    if point.statistic == "missing":
        column = int(np.delete(np.arange(len(mine)), shown)[np.delete(mine, shown).argmax()])
        value = f"not shown, the least shown is {float(np.nanmin(theirs)):.6g}"
    operation = next(op.name for op in oracle.operations if op.point == "lm_head")
    return Divergence(
        case=report.case, statistic=point.statistic, point="lm_head", layer=None, token=token,
        floor_units=point.floor_units, expected=float(mine[column]), found=value, mode=MODE,
        operation=operation, index=[column], detail="log-probabilities in nats",
        reproduce=localise.command(oracle, "lm_head"),
    )  # fmt: skip
