"""The stated false-alarm rate is the measured one: fresh legal runs, counted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from laguna_ref.conformance.budget import (
    DEFAULT_RUNS,
    FALSE_ALARM_RATE,
    Budget,
    PromptRuns,
    fitted,
    joint_threshold,
    maxima_of,
    measure,
    threshold_of,
)
from laguna_ref.conformance.comparisons import MODES
from laguna_ref.conformance.precision import PRESETS
from tests.conformance.samples import budget_of, prompt, tiny

FRESH_SEEDS = 1_000_000
REPORTS = (("added", "layers", "replayed"), ("added", "free", "logits"), ("logits",))


def accused(budget: Budget, count: int, fresh: int) -> dict[tuple[str, ...], int]:
    """How many of ``fresh`` legal runs each kind of report would accuse."""
    tokens = prompt(count)
    legal = PromptRuns(tiny(), np.array(tokens), np.arange(count), budget.precision)
    scale = dict(zip(budget.keys, budget.scales.tolist(), strict=True))
    rows = [maxima_of(legal.legal(FRESH_SEEDS + i), scale) for i in range(fresh)]
    maxima = np.array(rows)
    result = {}
    for modes in REPORTS:
        columns = [MODES.index(mode) for mode in modes]
        limit = budget.threshold(modes).floor_units
        result[modes] = int((maxima[:, columns].max(axis=1) > limit).sum())
    return result


def most_accused(trials: int, rate: float, chance: float = 0.005) -> int:
    """The greatest count that binomial draws at ``rate`` exceed with less than ``chance``."""
    below, count = 0.0, -1
    while 1 - below > chance:
        count += 1
        below += math.comb(trials, count) * rate**count * (1 - rate) ** (trials - count)
    return count


def test_the_bound_for_a_thousand_runs_at_one_percent() -> None:
    assert most_accused(1000, 0.01) == 19


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_thousand_fresh_legal_runs(precision: str) -> None:
    """As many runs as by default: 300 held out keep the rate itself, not only its average."""
    budget = measure(tiny(), np.array(prompt(8)), np.arange(8), PRESETS[precision])
    for modes, count in accused(budget, 8, 1000).items():
        assert count <= most_accused(1000, FALSE_ALARM_RATE), modes


def test_few_fresh_legal_runs() -> None:
    """The smaller of both: a budget of sixty runs states 1 in 31, and fifty runs are fresh."""
    budget = budget_of("float32", 8, 60)
    rate = budget.threshold(MODES).confident_rate
    for modes, count in accused(budget, 8, 50).items():
        assert count <= most_accused(50, rate), modes


def test_what_runs_are_worth() -> None:
    random = np.random.default_rng(0)
    assert threshold_of(random.random(30)).rate == pytest.approx(1 / 31)
    hundred = threshold_of(random.random(100))
    assert hundred.rate <= FALSE_ALARM_RATE
    assert hundred.confident_rate == pytest.approx(1 - 0.05 ** (1 / 100))
    held_out = DEFAULT_RUNS - fitted(DEFAULT_RUNS)
    assert threshold_of(random.random(held_out)).confident_rate <= FALSE_ALARM_RATE


def test_cases_judged_together_have_one_threshold() -> None:
    one, two = budget_of("float32", 8, 60), budget_of("float32", 24, 60)
    joint = joint_threshold([one, two], MODES)
    assert joint.rate == one.threshold(MODES).rate
    alone = [budget.threshold(MODES).floor_units for budget in (one, two)]
    assert joint.floor_units == max(alone)  # thirty runs: the greatest of each
    with pytest.raises(ValueError, match="share seeds"):
        joint_threshold([one, replace(two, seed=7)], MODES)


def test_a_budget_survives_its_arrays() -> None:
    budget = budget_of("float32", 8, 60)
    arrays, meta = budget.to_arrays()
    again = Budget.from_arrays(arrays, meta)
    assert again.keys == budget.keys
    assert again.precision == budget.precision
    np.testing.assert_array_equal(again.scales, budget.scales.astype(np.float32))
    np.testing.assert_array_equal(again.maxima, budget.maxima.astype(np.float32))
    with pytest.raises(ValueError, match="schema"):
        Budget.from_arrays(arrays, {**meta, "schema": 99})
