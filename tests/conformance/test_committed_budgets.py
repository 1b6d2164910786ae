"""Budgets that come with the package: all there, and fresh legal runs lie inside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref.conformance import budget_cache
from laguna_ref.conformance.budget import DEFAULT_RUNS, Budget, PromptRuns, maxima_of
from laguna_ref.conformance.budget_cache import WAYS
from laguna_ref.conformance.comparisons import MODES
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.prepared import prepared

FRESH = range(3_000_000, 3_000_012)
"""Seeds that no budget was measured with."""


def committed(way: int, name: str) -> tuple[Any, Any, Any, Budget]:
    precision = PRESETS[WAYS[way][0]]
    model = laguna_ref.load(numerics="float64", engine="numpy", **WAYS[way][1])
    case = next(case for case in prepared(model, []) if case.case.name == name)
    prompt = case.prompt
    named = budget_cache.name_of(model, *prompt, precision, budget="whole")
    found = budget_cache.read(budget_cache.committed_file(named))
    assert found is not None, f"{WAYS[way]} {name}: run tools/make_budgets.py"
    return model, prompt, precision, Budget.from_arrays(*found)


@pytest.mark.parametrize("way", range(len(WAYS)), ids=[f"{p} {o}" for p, o in WAYS])
def test_every_golden_has_one(way: int) -> None:
    precision = PRESETS[WAYS[way][0]]
    model = laguna_ref.load(numerics="float64", engine="numpy", **WAYS[way][1])
    for case in prepared(model, []):
        named = budget_cache.name_of(model, *case.prompt, precision, budget="whole")
        found = budget_cache.read(budget_cache.committed_file(named))
        assert found is not None, f"{case.case.name}: run tools/make_budgets.py"
        assert found[1]["runs"] == DEFAULT_RUNS
        assert found[1]["precision"] == precision.to_json()


def test_no_file_is_of_no_use() -> None:
    asked = set()
    for precision, options in WAYS:
        model = laguna_ref.load(numerics="float64", engine="numpy", **options)
        for case in prepared(model, []):
            named = budget_cache.name_of(model, *case.prompt, PRESETS[precision], budget="whole")
            asked.add(budget_cache.committed_file(named))
    assert set(budget_cache.COMMITTED.glob("*")) == asked


@pytest.mark.parametrize("way", range(len(WAYS)), ids=[f"{p} {o}" for p, o in WAYS])
def test_fresh_legal_runs_fill_it_and_do_not_leave_it(way: int) -> None:
    """A budget of other variations than today's would be too tight or far too wide."""
    model, prompt, precision, budget = committed(way, "short-float")
    legal = PromptRuns(model, *prompt, precision)
    scales = dict(zip(budget.keys, budget.scales.tolist(), strict=True))
    shown = np.array([maxima_of(legal.legal(seed), scales) for seed in FRESH])
    known = budget.maxima
    for column, mode in enumerate(MODES):
        # Of 12 runs of the distribution that was measured, 7 lie below its 5 % quantile, or 7
        # above its 95 % one, with chance 6e-7 each.
        low, high = np.quantile(known[:, column], (0.05, 0.95))
        assert low <= np.median(shown[:, column]) <= high, mode
