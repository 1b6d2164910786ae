"""What a correct backend of a declared precision may be off by: measured, never chosen.

The oracle runs R legal variations of one prompt. Some of the runs give every comparison its
scale, one *floor unit*: the greatest value any of them shows. Of the others only the
greatest scaled comparison of each run is kept; the threshold is an order statistic of those, so
that a whole report, whatever it compares, accuses a legal run with a known chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from laguna_ref.conformance.comparisons import MODES, Comparisons, Key, Oracle, compare
from laguna_ref.conformance.inputs import CaseLike
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.replay import run
from laguna_ref.conformance.variations import draw, truth_of, varied
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, round_to_bf16

SCHEMA = 1
FALSE_ALARM_RATE = 0.01
"""Of a report, over the variations of ``variations.py``."""
FITTED = 100
"""Runs that give the scales, or half of all where there are fewer than twice as many. More would
sharpen the scales of single comparisons; only runs held out make the stated rate surer."""
DEFAULT_RUNS = 400
"""The least round number whose 300 runs held out keep the rate above: see ``threshold_of``."""


@dataclass(frozen=True)
class Threshold:
    """The greatest scaled comparison a report may show, and what that is worth."""

    floor_units: float
    rate: float
    """Chance that a further legal run exceeds it, averaged over budgets: with n runs held out
    the k-th smallest is exceeded with chance 1 - k / (n + 1). Fewer than 99 cannot reach 1 %."""
    confident_rate: float
    """The rate that this very budget keeps with 95 % confidence."""


@dataclass(frozen=True)
class Budget:
    """Scales of all comparisons of one prompt, and how far legal runs exceed them."""

    precision: Precision
    keys: tuple[Key, ...]
    scales: Array
    """float64, one a key."""
    maxima: Array
    """[runs held out, modes]: greatest scaled comparison of each run in each mode."""
    flips: Array
    """[T]: share of the fitted runs in which the token went to other experts in some layer."""
    contaminated: Array
    """[T]: share of them in which it or an earlier token did."""
    runs: int
    seed: int

    def scale(self, key: Key) -> float | None:
        """One floor unit of a comparison; None where the budget has no such comparison."""
        at = self._places.get(key)
        return None if at is None else float(self.scales[at])

    @cached_property
    def _places(self) -> dict[Key, int]:
        return {key: at for at, key in enumerate(self.keys)}

    def run_maxima(self, modes: Iterable[str]) -> Array:
        """Greatest scaled comparison of each held-out run over the given modes, [runs]."""
        columns = [MODES.index(mode) for mode in modes]
        return np.asarray(self.maxima[:, columns].max(axis=1))

    def threshold(self, modes: Iterable[str], rate: float = FALSE_ALARM_RATE) -> Threshold:
        """For a report that compares in these modes."""
        return threshold_of(self.run_maxima(modes), rate)

    def to_arrays(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays by name, shapes as its own, and JSON metadata: ``from_arrays`` makes it again."""
        points = list(dict.fromkeys(key.point for key in self.keys))
        statistics = list(dict.fromkeys(key.statistic for key in self.keys))
        place = {name: at for at, name in enumerate(points)}
        keys = [
            (MODES.index(key.mode), place[key.point], statistics.index(key.statistic))
            for key in self.keys
        ]
        arrays: dict[str, Array] = {
            "keys": np.array(keys, dtype=np.int16).reshape(-1, 3),
            "scales": self.scales.astype(np.float32),
            "maxima": self.maxima.astype(np.float32),
            "flips": self.flips.astype(np.float32),
            "contaminated": self.contaminated.astype(np.float32),
        }
        meta: dict[str, Any] = {
            "schema": SCHEMA,
            "precision": self.precision.to_json(),
            "runs": self.runs,
            "seed": self.seed,
            "modes": list(MODES),
            "points": points,
            "statistics": statistics,
        }
        return arrays, meta

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array], meta: dict[str, Any]) -> Budget:
        """The inverse of ``to_arrays``, same shapes; raises ValueError for another schema."""
        if meta.get("schema") != SCHEMA or tuple(meta.get("modes", ())) != MODES:
            raise ValueError(f"a budget of schema {meta.get('schema')}, expected {SCHEMA}")
        return cls(
            Precision.from_json(meta["precision"]),
            tuple(
                Key(MODES[mode], meta["points"][point], meta["statistics"][statistic])
                for mode, point, statistic in np.asarray(arrays["keys"]).tolist()
            ),
            np.asarray(arrays["scales"], np.float64),
            np.asarray(arrays["maxima"], np.float64),
            np.asarray(arrays["flips"], np.float64),
            np.asarray(arrays["contaminated"], np.float64),
            int(meta["runs"]),
            int(meta["seed"]),
        )


def measure(
    model: Laguna,
    tokens: Array,
    positions: Array,
    precision: Precision,
    *,
    runs: int = DEFAULT_RUNS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Budget:
    """Runs the oracle ``runs`` times; 0.3 s each for 48 tokens of laguna-tiny on one core.

    Shapes: tokens and positions int [T].

    Variations of seeds ``seed`` to ``seed + runs - 1``; the first ``fitted(runs)`` give the scales.
    """
    prompt = PromptRuns(model, tokens, positions, precision)
    count = fitted(runs)
    values, flips = [], []
    for index in range(count):
        comparisons = prompt.legal(seed + index)
        values.append(prompt.to_fit(comparisons))
        assert comparisons.flips is not None
        flips.append(comparisons.flips.any(axis=0))
        if progress:
            progress(index + 1, runs)
    scale = _scales(values, precision)
    rows = []
    for index in range(count, runs):
        rows.append(maxima_of(prompt.legal(seed + index), scale))
        if progress:
            progress(index + 1, runs)
    scales = np.array(list(scale.values()))
    flipped = np.array(flips)  # [runs, T]
    return Budget(
        precision, tuple(scale), scales, np.array(rows), flipped.mean(axis=0),
        np.logical_or.accumulate(flipped, axis=1).mean(axis=0), runs, seed,
    )  # fmt: skip


def fitted(runs: int) -> int:
    """How many of the runs of a budget give its scales; the others are held out."""
    return min(runs // 2, FITTED)


def _scales(runs: list[dict[Key, float]], precision: Precision) -> dict[Key, float]:
    """One floor unit of every comparison, from the fitted runs alone.

    The greatest value of any run, times what that is short of in its mode: where errors are rare
    and large (a cached value that falls to the next FP8 code), the greatest of one half of the
    runs is well exceeded in the other. Without that factor such a mode would set the threshold
    of all.
    """
    keys = list(runs[0])
    table = np.array([[run[key] for key in keys] for run in runs])  # [runs, comparisons]
    floors = np.array([floor_of(key, precision) for key in keys])
    modes = np.array([key.mode for key in keys])
    half = max(1, len(table) // 2)
    first = np.maximum(table[:half].max(axis=0), floors)
    second = np.maximum(table[half:].max(axis=0, initial=0.0), floors)
    exceeded = {mode: float((second / first)[modes == mode].max()) for mode in set(modes.tolist())}
    scales = np.maximum(table.max(axis=0), floors)
    scales *= np.array([max(1.0, exceeded[mode]) for mode in modes])
    return dict(zip(keys, scales.tolist(), strict=True))


class PromptRuns:
    """One prompt under one precision: the oracle's run, and legal runs by seed."""

    def __init__(
        self, model: Laguna, tokens: Array, positions: Array, precision: Precision
    ) -> None:
        self.model, self.precision = model, precision
        self.matrices = Matrices()
        self.oracle = Oracle(truth_of(model, precision, self.matrices), tokens, positions)

    def trace(self, seed: int) -> dict[str, Array]:
        """All trace points, [T, ...] each, of the variation of a seed."""
        return run(self.variation(seed), self.oracle.tokens, self.oracle.positions)

    def variation(self, seed: int) -> Laguna:
        """The legal variation of a seed; for one run, its sums draw as they go."""
        return varied(self.model, draw(self.precision, seed), self.matrices)

    def legal(self, seed: int) -> Comparisons:
        """That variation judged in every mode."""
        return compare(self.oracle, self.trace(seed), MODES)

    def to_fit(self, comparisons: Comparisons) -> dict[Key, float]:
        """Its values; a choice may fall short by twice the noise of a score, flipped or not.

        That noise is what the logits show and what holding the bias in another type brings.
        """
        values = {key: value for key, (value, _) in comparisons.values.items()}
        for key, noise in comparisons.score_noise.items():
            values[key] = max(values[key], 2 * (noise + self._bias_noise(key)))
        return values

    def _bias_noise(self, key: Key) -> float:
        if self.precision.activations != "bfloat16":
            return 0.0
        bias = self.oracle.bias(int(key.point.split(".")[2])).astype(np.float32)
        return float(np.abs(round_to_bf16(bias) - bias).max(initial=0.0))


def maxima_of(comparisons: Comparisons, scale: dict[Key, float]) -> list[float]:
    """Greatest scaled comparison in each mode."""
    greatest = dict.fromkeys(MODES, 0.0)
    for key, (value, _) in comparisons.values.items():
        greatest[key.mode] = max(greatest[key.mode], value / scale[key])
    return [greatest[mode] for mode in MODES]


def floor_of(key: Key, precision: Precision) -> float:
    """The least a scale may be: what writing a value down in its type may bring.

    Scores are float32 numbers up to 1; two of them are compared.
    """
    if key.statistic == "deficit":
        return 2 * 2.0**-24
    return precision.unit_roundoff


def threshold_of(maxima: Array, rate: float = FALSE_ALARM_RATE) -> Threshold:
    """The least order statistic of maxima [held-out runs] that keeps ``rate`` with 95 % confidence.

    Where there are too few runs for that (299 for 1 %), the greatest of them.
    """
    n, above = len(maxima), 1
    while above < n and _upper_rate(n, above + 1) <= rate:
        above += 1
    k = n - above + 1
    return Threshold(
        float(np.sort(maxima)[k - 1]), max(0.0, 1 - k / (n + 1)), _upper_rate(n, above)
    )


def joint_threshold(
    budgets: Sequence[Budget], modes: Iterable[str], rate: float = FALSE_ALARM_RATE
) -> Threshold:
    """For a set of cases judged together: the rate is that of accusing a legal backend at all.

    Each run of a budget is the same variation in every case, so the greatest of all cases is one
    number a run. Raises ValueError for budgets of other seeds, runs or precisions.
    """
    of_set = {(budget.seed, budget.runs, budget.precision) for budget in budgets}
    if len(of_set) != 1:
        raise ValueError(f"budgets of one set must share seeds, runs and precision, not {of_set}")
    modes = tuple(modes)
    return threshold_of(np.max([budget.run_maxima(modes) for budget in budgets], axis=0), rate)


@dataclass(frozen=True)
class ForGolden:
    """What measures the budget of a case while its golden is made: model, case -> arrays, JSON."""

    precision: Precision
    runs: int = DEFAULT_RUNS
    seed: int = 0

    def __call__(self, model: Laguna, case: CaseLike) -> tuple[dict[str, Array], dict[str, Any]]:
        """Measures; see ``Budget.to_arrays``."""
        tokens = np.asarray(case.tokens, dtype=np.int64)
        places = np.arange(len(tokens)) if case.positions is None else np.asarray(case.positions)
        budget = measure(model, tokens, places, self.precision, runs=self.runs, seed=self.seed)
        return budget.to_arrays()

    def made(self, meta: Mapping[str, Any]) -> bool:
        """Whether a budget with this metadata is the one that this would measure."""
        expected = {"precision": self.precision.to_json(), "runs": self.runs, "seed": self.seed}
        return meta.get("schema") == SCHEMA and all(
            meta.get(key) == value for key, value in expected.items()
        )


def for_golden(precision: Precision, runs: int = DEFAULT_RUNS, seed: int = 0) -> ForGolden:
    """The budget of a case, as ``golden.make`` asks for it."""
    return ForGolden(precision, runs, seed)


def _upper_rate(n: int, above: int, confidence: float = 0.95) -> float:
    """The rate p at which fewer than ``above`` of n runs at or beyond it have chance 5 %."""
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        fewer = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(above))
        low, high = (p, high) if fewer > 1 - confidence else (low, p)
    return high
