"""What legal backends are off by where only log-probabilities through a window are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from laguna_ref.conformance import partial, statistics
from laguna_ref.conformance.budget import DEFAULT_RUNS, FALSE_ALARM_RATE, PromptRuns, Threshold
from laguna_ref.conformance.budget import threshold_of as _threshold_of
from laguna_ref.conformance.partial import STATISTICS, Seen, View
from laguna_ref.conformance.precision import Precision
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array

SCHEMA = 1
TWO_VALUES = ("top1", "overtaken", "missing")
"""Statistics that are a difference of two log-probabilities of one row."""


@dataclass(frozen=True)
class PartialBudget:
    """One floor unit of each statistic, and how far legal runs exceed them."""

    precision: Precision
    scales: Array
    """float64, in the order of ``partial.STATISTICS``, nats (``kl``: their root)."""
    maxima: Array
    """[runs held out]: the greatest scaled statistic of each."""
    contaminated: Array
    """[T]: share of the fitted runs in which the token or an earlier one went to other experts."""
    runs: int
    seed: int

    def scale(self, statistic: str) -> float:
        """One floor unit."""
        return float(self.scales[STATISTICS.index(statistic)])

    def threshold(self, rate: float = FALSE_ALARM_RATE) -> Threshold:
        """For a report of this case alone."""
        return _threshold_of(self.maxima, rate)

    def to_arrays(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays and JSON metadata, from which ``from_arrays`` makes it again."""
        meta = {"schema": SCHEMA, "precision": self.precision.to_json(), "runs": self.runs,
                "seed": self.seed, "statistics": list(STATISTICS)}  # fmt: skip
        arrays = {"scales": self.scales, "maxima": self.maxima, "contaminated": self.contaminated}
        return {name: np.asarray(a, np.float64) for name, a in arrays.items()}, meta

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array], meta: dict[str, Any]) -> PartialBudget:
        """The inverse of ``to_arrays``; raises ValueError for another schema."""
        if meta.get("schema") != SCHEMA or tuple(meta.get("statistics", ())) != STATISTICS:
            raise ValueError(f"a budget of schema {meta.get('schema')}, expected {SCHEMA}")
        return cls(
            Precision.from_json(meta["precision"]), arrays["scales"], arrays["maxima"],
            arrays["contaminated"], int(meta["runs"]), int(meta["seed"]),
        )  # fmt: skip


def measure(
    model: Laguna,
    tokens: Array,
    positions: Array,
    precision: Precision,
    seen: Seen,
    *,
    runs: int = DEFAULT_RUNS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PartialBudget:
    """Runs the oracle ``runs`` times, each looked at through the window ``seen``.

    Variations of seeds ``seed`` to ``seed + runs - 1``, as in ``budget.measure``; the first half
    is fitted.
    """
    prompt = PromptRuns(model, tokens, positions, precision)
    expected = partial.log_softmax(prompt.oracle.free["lm_head"])
    rows, flips, fitted = [], [], runs // 2
    for index in range(runs):
        trace = prompt.trace(seed + index)
        rows.append(_values(partial.view(_shown(trace["lm_head"], seen), expected, seen)))
        if index < fitted:
            flips.append(_flipped(prompt, trace))
        if progress:
            progress(index + 1, runs)
    table = np.array(rows)  # [runs, statistics]
    scales = _scales(table[:fitted], _floors(expected, seen, precision))
    contaminated = np.logical_or.accumulate(np.array(flips), axis=1).mean(axis=0)
    return PartialBudget(
        precision, scales, (table[fitted:] / scales).max(axis=1), contaminated, runs, seed
    )


def _shown(logits: Array, seen: Seen) -> Array:
    return partial.shown_through(partial.log_softmax(logits), seen)


def _values(view: View) -> list[float]:
    return [view.values[name] for name in STATISTICS]


def _scales(table: Array, floors: Array) -> Array:
    """As in ``budget.measure``: the greatest, times what one quarter exceeds the other by."""
    half = max(1, len(table) // 2)
    first = np.maximum(table[:half].max(axis=0), floors)
    second = np.maximum(table[half:].max(axis=0, initial=0.0), floors)
    exceeded = max(1.0, float((second / first).max()))
    return np.asarray(np.maximum(table.max(axis=0), floors) * exceeded)


def _floors(expected: Array, seen: Seen, precision: Precision) -> Array:
    """What writing log-probabilities down in the backend's type may bring, [statistics]."""
    shown = partial.shown_through(expected, seen)
    one = precision.unit_roundoff * float(np.nanmax(np.abs(shown), initial=1.0))
    return np.array([2 * one if name in TWO_VALUES else one for name in STATISTICS])


def _flipped(prompt: PromptRuns, trace: dict[str, Array]) -> Array:
    """bool [T]: which tokens went to other experts than the oracle's, in any layer."""
    oracle = prompt.oracle
    differs = np.zeros(len(oracle.tokens), dtype=bool)
    for layer in oracle.sparse_layers():
        point = f"model.layers.{layer}.mlp.topk_ids"
        differs |= statistics.other_sets(trace[point], oracle.free[point])
    return differs


def joint_threshold(budgets: Sequence[PartialBudget], rate: float = FALSE_ALARM_RATE) -> Threshold:
    """For a set of cases judged together; raises ValueError for budgets of other seeds or runs."""
    of_set = {(budget.seed, budget.runs, budget.precision) for budget in budgets}
    if len(of_set) != 1:
        raise ValueError(f"budgets of one set must share seeds, runs and precision, not {of_set}")
    return _threshold_of(np.max([budget.maxima for budget in budgets], axis=0), rate)
