"""A backend put to every case, all of them judged together.

The threshold is one for all cases, so that the whole report, however many there are, accuses a
legal backend at the stated rate. Laws are put by whoever asks for them (they need Hypothesis);
``ConformReport.laws`` takes their results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from laguna_ref.conformance import budget_cache, partial_budget, partial_judge
from laguna_ref.conformance.asking import Answer, Asker
from laguna_ref.conformance.backend import (
    Backend,
    BackendError,
    declared_precision,
    describe,
    oracle_options,
)
from laguna_ref.conformance.budget import (
    DEFAULT_RUNS,
    FALSE_ALARM_RATE,
    Budget,
    Threshold,
    joint_threshold,
    measure,
)
from laguna_ref.conformance.comparisons import MODES
from laguna_ref.conformance.conform_report import ConformReport
from laguna_ref.conformance.judge import judge
from laguna_ref.conformance.partial import Seen
from laguna_ref.conformance.partial_budget import PartialBudget
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.prepared import Prepared
from laguna_ref.conformance.report import DIVERGES, INCONCLUSIVE, Report
from laguna_ref.load import load
from laguna_ref.model import Laguna

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""
ORACLE_OPTIONS = ("dequant", "kv_cache", "kv_cache_skip_layers")
"""Those of ``laguna_ref.load`` that say which function is computed."""
REPLAYABLE = ("added", "layers", "replayed")


def oracle_of(backend: Backend, path: Any, **options: Any) -> Laguna:
    """The oracle that a backend asks to be judged by, in float64.

    Raises BackendError for an option that no oracle has, and what ``load`` raises.
    """
    stated = oracle_options(backend)
    unknown = sorted(set(stated) - set(ORACLE_OPTIONS))
    if unknown:
        raise BackendError(
            f"{backend.name}: unknown option of its oracle", key=unknown[0],
            expected=", ".join(ORACLE_OPTIONS), found=stated[unknown[0]],
        )  # fmt: skip
    asked = {"dequant": "exact", "kv_cache": "checkpoint"} | stated
    return load(path, numerics="float64", engine="numpy", **asked, **options)


def conform(
    backend: Backend,
    model: Laguna,
    cases: Sequence[Prepared],
    *,
    runs: int = DEFAULT_RUNS,
    seed: int = 0,
    progress: Progress | None = None,
) -> ConformReport:
    """Asks for every case, measures what budgets are not there yet, and judges.

    A case that fails is inconclusive; so are those after a backend has died. Raises InputError
    for a precision nobody knows.
    """
    work = Conforming(backend, model, runs, seed, progress or (lambda what, done, total: None))
    return work.of(cases)


@dataclass
class Conforming:
    """One backend, and how it is judged."""

    backend: Backend
    model: Laguna
    runs: int
    seed: int
    progress: Progress

    def of(self, cases: Sequence[Prepared]) -> ConformReport:
        """All cases, in their order."""
        asker = Asker(self.backend, self.model.config)
        left_out = {case.case.name: asker.cannot(case.case) for case in cases}
        asked = [case for case in cases if left_out[case.case.name] is None]
        answers = []
        for index, case in enumerate(asked):
            self.progress("asking", index, len(asked))
            answers.append(asker.ask(case.case))
        report = ConformReport(
            backend=describe(self.backend),
            model_sha256=cases[0].identity.weights_sha256 if cases else None,
            cases=self.judged(asked, answers),
            died=asker.died,
        )
        report.left_out = [f"{name}: {reason}" for name, reason in left_out.items() if reason]
        return report

    def judged(self, cases: Sequence[Prepared], answers: Sequence[Answer]) -> list[Report]:
        """A report a case."""
        known = [
            index for index, answer in enumerate(answers)
            if answer.points and (not partial_judge.is_partial(answer) or _window(answer).k)
        ]  # fmt: skip
        some = [(cases[index], answers[index]) for index in known]
        if some and partial_judge.is_partial(some[0][1]):
            reports = self._judge_partial(some)
        else:
            reports = self._judge_whole(some)
        by_index = dict(zip(known, reports, strict=True))
        return [
            _with_problem(by_index.get(index) or _nothing(cases[index], self.backend), answer)
            for index, answer in enumerate(answers)
        ]

    @property
    def precision(self) -> Precision:
        """What the backend declares."""
        return declared_precision(self.backend)

    def _judge_whole(self, some: Sequence[tuple[Prepared, Answer]]) -> list[Report]:
        pairs = [(self._measured(case, at, len(some)), answer)
                 for at, (case, answer) in enumerate(some)]  # fmt: skip
        sparse = [spec.index for spec in self.model.config.layers if spec.mlp == "sparse"]
        modes = {mode for _, answer in pairs for mode in modes_of(answer, sparse)}
        reports = self._judge_in(pairs, modes)
        used = {mode for report in reports for mode in report.judged_by.get("modes", ())}
        if not used <= modes:  # a choice too near a tie to follow from its logits: no replay
            reports = self._judge_in(pairs, modes | used)
        return reports

    def _judge_in(self, pairs: Sequence[tuple[Prepared, Answer]], modes: set[str]) -> list[Report]:
        budgets = [Budget.from_arrays(dict(case.budget), case.budget_meta or {})
                   for case, _ in pairs]  # fmt: skip
        ordered = [mode for mode in MODES if mode in modes]
        thresholds = _thresholds(budgets, ordered)
        reports = []
        for at, ((case, answer), threshold) in enumerate(zip(pairs, thresholds, strict=True)):
            self.progress("judging", at, len(pairs))
            reports.append(judge(case, answer, model=self.model, threshold=threshold))
        return reports

    def _measured(self, case: Prepared, at: int, total: int) -> Prepared:
        """The case with a budget for the backend's precision: its own where that is one."""
        meta = case.budget_meta
        if meta is not None and meta.get("precision") == self.precision.to_json():
            return case
        what = f"noise of case {at + 1} of {total}, {case.case.name}"
        name = self._name(case, budget="whole")
        return case.with_budget(*budget_cache.kept(name, lambda: measure(
            self.model, *case.prompt, self.precision, runs=self.runs, seed=self.seed,
            progress=lambda done, of: self.progress(what, done, of),
        ).to_arrays()))  # fmt: skip

    def _judge_partial(self, some: Sequence[tuple[Prepared, Answer]]) -> list[Report]:
        budgets = [
            self._partial(case, _window(answer), f"noise of case {at + 1} of {len(some)}")
            for at, (case, answer) in enumerate(some)
        ]
        threshold = partial_budget.joint_threshold(budgets)
        return [
            judge(case, answer, model=self.model, threshold=threshold, partial_budget=budget)
            for (case, answer), budget in zip(some, budgets, strict=True)
        ]

    def _partial(self, case: Prepared, seen: Seen, what: str) -> PartialBudget:
        extra = [places.tolist() for places in seen.extra.nonzero()]
        shown = [seen.k, extra, seen.rows.tolist()]
        name = self._name(case, budget="partial", window=shown)
        return PartialBudget.from_arrays(*budget_cache.kept(name, lambda: partial_budget.measure(
            self.model, *case.prompt, self.precision, seen, runs=self.runs, seed=self.seed,
            progress=lambda done, of: self.progress(what, done, of),
        ).to_arrays()))  # fmt: skip

    def _name(self, case: Prepared, **parts: Any) -> budget_cache.Name:
        return budget_cache.name_of(
            self.model, *case.prompt, self.precision, runs=self.runs, seed=self.seed, **parts
        )


def modes_of(answer: Answer, sparse: Sequence[int]) -> tuple[str, ...]:
    """In which modes an answer will be compared, unless a near tie keeps it from a replay."""
    if set(answer.points) == {"lm_head"} and sparse:
        return ("logits",)
    routed = all(
        f"model.layers.{layer}.mlp.gate" in answer.points
        or {f"model.layers.{layer}.mlp.topk_ids", f"model.layers.{layer}.mlp.topk_weights"}
        <= set(answer.points)
        for layer in sparse
    )
    return REPLAYABLE if routed else ("added", "free", "logits")


def _thresholds(budgets: Sequence[Budget], modes: Sequence[str]) -> list[Threshold]:
    """One for all cases; of budgets that were measured apart, each its own, at its share of the
    rate. Where they have too few runs for that share, the whole report's rate is above the one
    asked for; either way the one stated is that of the whole report."""
    if not budgets:
        return []
    try:
        return [joint_threshold(budgets, modes)] * len(budgets)
    except ValueError:
        share = FALSE_ALARM_RATE / len(budgets)
        apart = [budget.threshold(modes, share) for budget in budgets]
        rate = _of_any([threshold.rate for threshold in apart])
        confident = _of_any([threshold.confident_rate for threshold in apart])
        return [replace(one, rate=rate, confident_rate=confident) for one in apart]


def _of_any(rates: Sequence[float]) -> float:
    """The chance that at least one of independent events happens."""
    return 1 - math.prod(1 - rate for rate in rates)


def _window(answer: Answer) -> Seen:
    """What is shown; nothing where there are no logits at all."""
    if "lm_head" not in answer.points:
        return Seen(0, np.zeros(0, bool), np.zeros(0, bool))
    return partial_judge.window_of(answer)


def _nothing(case: Prepared, backend: Backend) -> Report:
    return Report(
        INCONCLUSIVE, "nothing was compared", case.case.name, describe(backend),
        case.identity.weights_sha256, {},
    )  # fmt: skip


def _with_problem(report: Report, answer: Answer) -> Report:
    """What was judged is kept; what was not keeps it from conforming."""
    if answer.problem is not None and report.verdict != DIVERGES:
        report.verdict, report.reason = INCONCLUSIVE, answer.problem
    return report
