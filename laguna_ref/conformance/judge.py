"""The verdict on a dump: conforming, diverges, or inconclusive, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laguna_ref.conformance import (
    guards,
    localise,
    mistakes,
    partial_judge,
    routing,
    statistics,
)
from laguna_ref.conformance.asking import Answer
from laguna_ref.conformance.budget import FALSE_ALARM_RATE, Budget, Threshold
from laguna_ref.conformance.comparisons import Comparisons, Key, Oracle, compare, fits, has_routing
from laguna_ref.conformance.inputs import DumpLike, GoldenLike, logits_of, points_of
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.operations import weights_of_chosen
from laguna_ref.conformance.partial_budget import PartialBudget
from laguna_ref.conformance.replay import routing_in, run
from laguna_ref.conformance.report import (
    CONFORMING,
    DIVERGES,
    INCONCLUSIVE,
    Divergence,
    LogitsResult,
    Plots,
    Report,
    RoutingResult,
)
from laguna_ref.conformance.variations import truth_of
from laguna_ref.golden.dump import execution_order
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.ops.router import choose, margins, scores_of


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
        return _inconclusive(report, problem)
    assert golden.budget_meta is not None
    budget = Budget.from_arrays(dict(golden.budget), golden.budget_meta)
    declared = guards.declared_precision(dump)
    if declared is not None and declared != budget.precision:
        return _inconclusive(
            report,
            f"the {_what(dump)} declares {declared}, the golden's budget is for {budget.precision}",
        )
    report.judged_by |= {"precision": budget.precision.to_json(), "runs": budget.runs}
    bad = guards.not_finite(points)
    if bad is not None:
        return _no_number(report, bad, points)
    if model is None:
        return _without_model(
            golden, points, budget, report, false_alarm_rate, threshold, _what(dump)
        )
    _, at = logits_of(golden)
    truth = truth_of(model, budget.precision, Matrices())
    oracle = Oracle(
        truth, np.asarray(golden.case.tokens), guards.positions_of(golden),
        None if at is None else np.asarray(at),
    )  # fmt: skip
    return _Judgement(oracle, budget, report, false_alarm_rate, threshold, _what(dump)).of(points)


@dataclass
class _Judgement:
    """One dump held against the oracle."""

    oracle: Oracle
    budget: Budget
    report: Report
    rate: float
    given: Threshold | None
    what: str
    """``dump`` or ``answer``, as the report calls it."""
    threshold: Threshold = field(init=False)

    def of(self, points: dict[str, Array]) -> Report:
        oracle, report = self.oracle, self.report
        found = self._known(points)
        found = self._routing(found)
        if report.reason:
            return report
        replayable = has_routing(oracle, found)
        modes = _modes(oracle, found, replayable)
        self.threshold = self.given or self.budget.threshold(modes, self.rate)
        whole = tuple(mode for mode in modes if mode not in ("added", "layers"))
        comparisons = compare(oracle, found, whole)
        unlike = self._unlike(found, comparisons)
        if unlike:
            found = self._mended(found, unlike, replayable)
            comparisons = compare(oracle, found, whole)
        comparisons = compare(oracle, found, [m for m in modes if m not in whole], comparisons)
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
        """Points of the model, in order of execution, in the oracle's shapes where they fit."""
        found = {}
        for op in self.oracle.operations:
            if op.point in points:
                found[op.point] = np.asarray(points[op.point])
        unknown = sorted(set(points) - set(found))
        if unknown:
            self.report.left_out.append(f"{unknown[0]}: the model has no such trace point")
        if not found:
            _inconclusive(self.report, "nothing to compare: no trace point of this model")
        return found

    def _routing(self, found: dict[str, Array]) -> dict[str, Array]:
        """Ids and weights follow from the router's logits where the dump has only those."""
        model, oracle = self.oracle.model, self.oracle
        found = self._without_misshapen_routing(found)
        for layer in oracle.sparse_layers():
            at = f"model.layers.{layer}.mlp"
            gate, ids, weights = f"{at}.gate", f"{at}.topk_ids", f"{at}.topk_weights"
            rows = (len(oracle.tokens), model.config.num_experts)
            has_logits = gate in found and found[gate].shape == rows
            if ids in found:
                problem = guards.bad_choice(found[ids], model.router.top_k, rows[1])
                if problem is not None:
                    return self._invalid_choice(found, layer, *problem)
            if has_logits:
                scores = scores_of(np.asarray(found[gate], np.float64), model.router.score_func)
                if ids not in found and self._choice_is_clear(layer, found[gate]):
                    bias = oracle.bias(layer)
                    found[ids] = choose(scores, bias, model.router, model.numerics)[0]
                if ids in found and weights not in found:
                    found[weights] = weights_of_chosen(found[ids], scores, model)
        return found

    def _without_misshapen_routing(self, found: dict[str, Array]) -> dict[str, Array]:
        """Names ids and weights that are not of this prompt; they cannot be replayed."""
        kept = dict(found)
        for point in (point for point in found if ".topk_" in point):
            array, ids = found[point], found.get(point.replace("_weights", "_ids"))
            if point.endswith("_ids") and array.dtype.kind not in "iu":
                del kept[point]
                self.report.mistakes.append(f"{point} holds {array.dtype}, expected integers")
            elif len(array) != len(self.oracle.tokens) or array.ndim != 2 or (
                ids is not None and len(ids) == len(array) and array.shape != ids.shape
            ):  # fmt: skip
                shape = (len(self.oracle.tokens), self.oracle.model.router.top_k)
                self._drop(kept, point, array, shape)
        return kept

    def _choice_is_clear(self, layer: int, logits: Array) -> bool:
        """Whether a backend with these router logits can have chosen in one way only."""
        scale = self.budget.scale(routing.deficit_key(layer, "added"))
        scores = self.oracle.selection_scores(layer, logits)
        margin = margins(scores, self.oracle.model.router.top_k)
        return scale is not None and float(margin.min()) > scale

    def _invalid_choice(
        self, found: dict[str, Array], layer: int, token: int, text: str
    ) -> dict[str, Array]:
        point, model = f"model.layers.{layer}.mlp.topk_ids", self.oracle.model
        expected = f"{model.router.top_k} different experts, 0 to {model.config.num_experts - 1}"
        self.report.verdict, self.report.reason = DIVERGES, f"{point} {text}"
        self.report.first_divergence = Divergence(
            self.report.case, "deficit", point, layer, token, None, expected,
            found[point][token].tolist(), "added", "choice of experts", [], text,
            localise.command(self.oracle, point),
        )  # fmt: skip
        return found

    def _unlike(self, found: Mapping[str, Array], whole: Comparisons) -> list[str]:
        """Points of another shape than the oracle's, or outside the budget of a whole run."""
        return [
            point for point in found
            if ".topk_" not in point and (point in whole.misshapen or any(
                measured.value > self._limit(key)
                for key, measured in whole.values.items()
                if key.point == point and key.statistic == "l2"
            ))
        ]  # fmt: skip

    def _mended(
        self, found: dict[str, Array], unlike: list[str], replayable: bool
    ) -> dict[str, Array]:
        """The dump with its own mistakes named and, where that is possible, undone."""
        oracle, mode = self.oracle, "replayed" if replayable else "free"
        expected = oracle.free
        if replayable:
            expected = run(oracle.model, oracle.tokens, oracle.positions, routing_in(found))
        mended = dict(found)
        for point in unlike:
            array = found[point]
            wanted = oracle.like(point, array, expected[point])
            view = expected if wanted is expected[point] else {**expected, point: wanted}
            mistake = mistakes.find(
                oracle.model, point, array, view,
                lambda name, a, b: self._inside(mode, name, a, b),
            )  # fmt: skip
            if mistake is not None:
                self.report.mistakes.append(str(mistake))
                if mistake.mended is None:
                    del mended[point]
                else:
                    mended[point] = mistake.mended
            elif not fits(array, wanted):
                self._drop(mended, point, array, wanted.shape)
        self.report.mistakes.sort(key=lambda text: execution_order(text.partition(" ")[0]))
        return mended

    def _drop(
        self, mended: dict[str, Array], point: str, array: Array, wanted: tuple[int, ...]
    ) -> None:
        del mended[point]
        self.report.mistakes.append(
            f"{point} has shape {list(array.shape)}, expected {list(wanted)}"
        )

    def _inside(self, mode: str, point: str, found: Array, expected: Array) -> bool:
        key = Key("logits" if mode == "free" and point == "lm_head" else mode, point, "l2")
        each = statistics.of_vectors(found, expected)["l2"]
        return float(each.max()) <= self._limit(key)

    def _limit(self, key: Key) -> float:
        """The greatest value that is inside; of what the budget does not know, any is."""
        scale = self.budget.scale(key)
        return np.inf if scale is None else self.threshold.floor_units * scale

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
            report.verdict = DIVERGES
            where = report.first_divergence
            report.reason = (
                f"{first.point}, token {where.token}: {first.floor_units:,.3g} floor units, a "
                f"legal report stays under {self.threshold.floor_units:.3g}"
            )
            return report
        if report.mistakes:
            return _inconclusive(report, f"the {self.what} is mistaken: {report.mistakes[0]}")
        if not report.points:
            return _inconclusive(report, "nothing was compared")
        if "lm_head" in report.missing:
            return _inconclusive(report, "missing: lm_head, so the logits are unknown")
        if contaminated.mean() > 0.5:
            return _inconclusive(
                report,
                f"{int(contaminated.sum())} of {len(contaminated)} tokens follow, in most legal "
                "runs, another choice of experts; a trace with its routing can be replayed",
            )
        report.verdict = CONFORMING
        share = report.share_of_budget or 0.0
        report.reason = f"{len(report.points)} comparisons, {share:.2g} of the budget used"
        return report


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


def _without_model(
    golden: GoldenLike, points: dict[str, Array], budget: Budget, report: Report, rate: float,
    given: Threshold | None, what: str,
) -> Report:  # fmt: skip
    """Only the golden's own arrays: free comparisons, nothing replayed."""
    report.left_out.append("replay, added error and mistakes of the dump: no model was given")
    logits, at = logits_of(golden)
    expected = dict(golden.points)
    if logits is not None:
        expected["lm_head"] = logits
    comparisons = Comparisons()
    modes = ("logits",) if set(points) == {"lm_head"} else ("free", "logits")
    for point, array in points.items():
        mode = "logits" if point == "lm_head" else "free"
        if point not in expected or ".topk_" in point:
            continue
        wanted = np.asarray(expected[point])
        if point == "lm_head" and at is not None and len(array) == len(golden.case.tokens):
            array = array[np.asarray(at)]
        if array.size != wanted.size or len(array) != len(wanted):
            report.mistakes.append(
                f"{point} has shape {list(array.shape)}, expected {list(wanted.shape)}"
            )
            continue
        comparisons.vectors(mode, point, np.asarray(array), wanted)
    threshold = given or budget.threshold(modes, rate)
    report.threshold = threshold.floor_units
    report.judged_by |= {"false_alarm_rate": threshold.rate, "modes": list(modes)}
    contaminated = routing.contaminated(budget)
    report.routing.contaminated = int(contaminated.sum())
    report.points = localise.results_without_oracle(comparisons, budget, threshold.floor_units)
    first = localise.first(report.points)
    if first is not None:
        report.verdict = DIVERGES
        report.first_divergence = localise.divergence_without_oracle(
            first, comparisons, points, report.case
        )
        report.reason = f"{first.point}, token {first.token}: {first.floor_units:,.3g} floor units"
        return report
    if report.mistakes:
        return _inconclusive(report, f"the {what} is mistaken: {report.mistakes[0]}")
    if not report.points or "lm_head" not in points:
        return _inconclusive(
            report, "missing: lm_head" if report.points else "nothing was compared"
        )
    if contaminated.mean() > 0.5:
        return _inconclusive(report, f"{int(contaminated.sum())} tokens contaminated, no replay")
    report.verdict, report.reason = CONFORMING, f"{len(report.points)} comparisons"
    return report


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


def _inconclusive(report: Report, reason: str) -> Report:
    report.verdict, report.reason = INCONCLUSIVE, reason
    return report


def _no_number(
    report: Report, bad: tuple[str, int, tuple[int, ...]], points: Mapping[str, Array]
) -> Report:
    point, token, index = bad
    layer = int(point.split(".")[2]) if point.startswith("model.layers.") else None
    report.verdict = DIVERGES
    report.reason = f"{point}, token {token}: not a number"
    report.first_divergence = Divergence(
        report.case, "finite", point, layer, token, None, "a finite number",
        str(np.asarray(points[point])[(token, *index)]), "free", "", list(index), "", "",
    )  # fmt: skip
    return report
