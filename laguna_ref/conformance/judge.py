"""The verdict on a dump: conforming, diverges, or inconclusive, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from laguna_ref.conformance import guards, partial_judge
from laguna_ref.conformance.asking import Answer
from laguna_ref.conformance.budget import FALSE_ALARM_RATE, Budget, Threshold
from laguna_ref.conformance.comparisons import Oracle
from laguna_ref.conformance.inputs import DumpLike, GoldenLike, logits_of, points_of
from laguna_ref.conformance.judge_with_model import Judgement
from laguna_ref.conformance.judge_without_model import judge_without_model
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.partial_budget import PartialBudget
from laguna_ref.conformance.report import (
    DIVERGES,
    INCONCLUSIVE,
    NOT_A_NUMBER,
    Divergence,
    Report,
)
from laguna_ref.conformance.variations import truth_of
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array


def judge(
    golden: GoldenLike,
    dump: DumpLike,
    *,
    model: Laguna | None = None,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    threshold: Threshold | None = None,
    partial_budget: PartialBudget | None = None,
) -> Report:
    """Holds what a backend computed against the oracle, by the golden's budget.

    ``model`` is the oracle of the golden's checkpoint, for replay and added error; without it
    only what the golden itself holds is compared. ``threshold``: that of a set of cases judged
    together (``budget.joint_threshold``), instead of this case's own. ``partial_budget``: of a
    dump that declares log-probabilities (else measured when one comes). Raises InputError for a
    precision nobody knows or a ``logprobs_k`` that is no number, and ValueError for a budget of
    another schema.
    """
    report = _empty(golden, dump)
    problem = guards.other_prompt(golden, dump)
    raw = _config_of(golden, model)
    if problem is None and raw is not None:
        problem = guards.other_config(raw, dump)
    points = points_of(dump)
    if problem is None and model is not None:
        problem = guards.other_semantics(golden, model)
    if problem is None and not points:
        problem = f"nothing to compare: the {_what(dump)} holds no trace point"
    guards.stated_k(dump.meta)  # what is no number is bad input
    if problem is None and partial_judge.is_partial(dump):
        return partial_judge.judge(
            golden, dump, report, model, false_alarm_rate=false_alarm_rate, threshold=threshold,
            budget=partial_budget,
        )  # fmt: skip
    if problem is None and golden.budget_meta is None:
        problem = (
            "the golden has no noise budget: make it with one (--budget), or put the dump's folder "
            "to laguna-ref conform dump:FOLDER, which measures it"
        )
    if problem is not None:
        return report.conclude(INCONCLUSIVE, problem)
    assert golden.budget_meta is not None
    budget = Budget.from_arrays(dict(golden.budget), golden.budget_meta)
    declared = guards.declared_precision(dump)
    if declared is not None and declared != budget.precision:
        return report.conclude(
            INCONCLUSIVE,
            f"the {_what(dump)} declares {declared}, the golden's budget is for {budget.precision}",
        )
    report.judged_by |= {"precision": budget.precision.to_json(), "runs": budget.runs}
    bad = guards.not_finite(points)
    if bad is not None:
        return _no_number(report, bad, points)
    if model is None:
        return judge_without_model(
            golden, points, budget, report, false_alarm_rate, threshold, _what(dump)
        )
    _, at = logits_of(golden)
    truth = truth_of(model, budget.precision, Matrices())
    oracle = Oracle(
        truth, np.asarray(golden.case.tokens), guards.positions_of(golden),
        None if at is None else np.asarray(at),
    )  # fmt: skip
    return Judgement(oracle, budget, report, false_alarm_rate, threshold, _what(dump)).of(points)


def _what(dump: DumpLike) -> str:
    """A running backend wrote no dump."""
    return "answer" if isinstance(dump, Answer) and not dump.recorded else "dump"


def _empty(golden: GoldenLike, dump: DumpLike) -> Report:
    settings = golden.settings
    sha256 = getattr(golden.identity, "weights_sha256", None)
    meta: Mapping[str, Any] = dump.meta
    return Report(
        verdict=INCONCLUSIVE,
        reason="",
        case=golden.case.name,
        backend={
            "name": meta.get("backend", meta.get("name")),
            "version": meta.get("version"),
            "config": meta.get("config"),
        },
        model_sha256=sha256,
        judged_by={
            "numerics": "float64",
            "dequant": settings.get("dequant"),
            "kv_cache": settings.get("kv_cache"),
        },
    )


def _config_of(golden: GoldenLike, model: Laguna | None) -> Mapping[str, Any] | None:
    if model is not None:
        return model.config.to_dict()
    effective = golden.settings.get("effective_config")
    return effective if isinstance(effective, Mapping) else None


def _no_number(
    report: Report, bad: tuple[str, int, tuple[int, ...]], points: Mapping[str, Array]
) -> Report:
    point, token, index = bad
    layer = int(point.split(".")[2]) if point.startswith("model.layers.") else None
    report.first_divergence = Divergence(
        report.case, "finite", point, layer, token, None, "a finite number",
        str(np.asarray(points[point])[(token, *index)]), "free", "", list(index), "", "",
    )  # fmt: skip
    return report.conclude(DIVERGES, f"{point}, token {token}: {NOT_A_NUMBER}")
