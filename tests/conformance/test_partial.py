"""Log-probabilities through a window: statistics, verdicts, how often legal runs are accused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laguna_ref.conformance import partial, partial_judge
from laguna_ref.conformance.budget import DEFAULT_RUNS, PromptRuns
from laguna_ref.conformance.judge import judge
from laguna_ref.conformance.partial import STATISTICS, seen_in, shown_through, view
from laguna_ref.conformance.partial_budget import PartialBudget, measure
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.report import Report
from laguna_ref.golden.kl import kl_divergence
from tests.conformance.samples import Array, Dump, Golden, golden_of, prompt, tiny

K = 20
RUNS = 60


def window(logprobs: Array, k: int = K) -> Array:
    """The k likeliest of each row."""
    whole = partial.Seen(k, np.zeros(logprobs.shape, bool), np.ones(len(logprobs), bool))
    return shown_through(logprobs, whole)


def through(logits: Array, k: int = K) -> Array:
    """What an endpoint shows of complete logits."""
    return window(partial.log_softmax(logits), k)


@pytest.fixture(scope="module")
def shown(dump: Dump) -> Dump:
    meta = {"logits": "logprobs", "logprobs_k": str(K), "precision": "float32"}
    return replace(dump, points={"lm_head": through(dump.points["lm_head"])}, meta=meta)


@pytest.fixture(scope="module")
def budget(shown: Dump) -> PartialBudget:
    return measure(
        tiny("float", "float64"), shown.tokens, shown.positions, PRESETS["float32"],
        partial_judge.window_of(shown), runs=RUNS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def case(golden_float_kv: Golden) -> Golden:
    """The prompt alone: no budget of its own is needed."""
    return replace(golden_float_kv, budget={}, budget_meta=None)


@pytest.fixture(scope="module")
def floating(shown: Dump) -> Dump:
    """The legal backend with a float cache."""
    model = tiny("float")
    return replace(shown, points={"lm_head": through(model(list(shown.tokens)))})


def judged(case: Golden, dump: Dump, budget: PartialBudget) -> Report:
    return judge(case, dump, model=tiny("float"), partial_budget=budget)


def moved(dump: Dump, token: int, column: int, by: float) -> Dump:
    array = dump.points["lm_head"].copy()
    array[token, column] += by
    return replace(dump, points={"lm_head": array})


rows = st.integers(0, 10**6).map(
    lambda seed: np.random.default_rng(seed).normal(size=(2, 3, 12)) * (1 + seed % 7)
)


@given(rows, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_the_divergence_shown_never_exceeds_the_whole(pair: Array, k: int) -> None:
    found, expected = partial.log_softmax(pair[0]), partial.log_softmax(pair[1])
    part = view(window(found, k), expected, seen_in(window(found, k), k))
    whole = kl_divergence(expected, found)
    assert (np.square(part.per_token["kl"]) / 2 <= whole * (1 + 1e-9) + 1e-12).all()
    complete = view(found, expected, seen_in(found))
    assert np.allclose(np.square(complete.per_token["kl"]) / 2, whole)


@given(rows, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_run_held_against_itself_shows_nothing(pair: Array, k: int) -> None:
    run = partial.log_softmax(pair[0])
    assert set(view(window(run, k), run, seen_in(window(run, k), k)).values.values()) == {0.0}


def test_the_token_that_came_next_is_no_part_of_the_likeliest() -> None:
    run = partial.log_softmax(np.arange(10.0)[None].repeat(3, axis=0))
    shown = window(run, 3)
    shown[:, 0] = run[:, 0]  # added to every row: without being told, k would be taken to be 4
    for k in (3, None):
        seen = seen_in(shown, k)
        assert seen.k == 3
        assert seen.extra.sum(axis=1).tolist() == [1, 1, 1]
        assert view(shown, run, seen).values["missing"] == 0
        assert np.array_equal(shown_through(run, seen), shown, equal_nan=True)


def test_tokens_of_which_nothing_is_known_are_left_out() -> None:
    run = partial.log_softmax(np.random.default_rng(0).normal(size=(3, 8)))
    shown = window(run, 2)
    shown[1] = np.nan
    seen = seen_in(shown, 2)
    assert seen.rows.tolist() == [True, False, True]
    assert np.isnan(shown_through(run, seen)[1]).all()
    off = shown + np.array([[0.0], [0.0], [0.5]])
    assert view(off, run, seen).values["rms"] == pytest.approx(0.5 / np.sqrt(2))


def test_a_legal_backend_conforms(case: Golden, floating: Dump, budget: PartialBudget) -> None:
    report = judged(case, floating, budget)
    assert report.verdict == "conforming", report.reason
    assert report.logits is not None
    assert (report.logits.tokens, report.logits.same_top_token) == (24, 24)
    assert [point.statistic for point in report.points] == list(STATISTICS)
    assert report.judged_by["logprobs_k"] == K


def test_one_that_is_off_diverges_at_its_token(
    case: Golden, floating: Dump, budget: PartialBudget
) -> None:
    column = int(np.flatnonzero(~np.isnan(floating.points["lm_head"][7]))[3])
    report = judged(case, moved(floating, 7, column, 0.01), budget)
    assert report.verdict == "diverges"
    first = report.first_divergence
    assert first is not None
    assert (first.point, first.token, first.index) == ("lm_head", 7, [column])


def test_a_likely_token_that_is_not_shown_diverges(
    case: Golden, floating: Dump, budget: PartialBudget
) -> None:
    array = floating.points["lm_head"].copy()
    wide = partial.log_softmax(tiny("float", "float64")(list(floating.tokens)))
    order = np.argsort(-wide[5])
    array[5, order[1]] = np.nan
    array[5, order[K]] = wide[5, order[K]]  # as many as before
    report = judged(case, replace(floating, points={"lm_head": array}), budget)
    assert report.verdict == "diverges"
    outside = {point.statistic for point in report.points if point.status == "outside"}
    assert outside == {"missing"}
    assert report.first_divergence is not None
    assert report.first_divergence.token == 5
    assert report.first_divergence.index == [order[1]]


def test_what_is_not_known_is_said_and_the_rest_judged(
    case: Golden, floating: Dump, budget: PartialBudget
) -> None:
    array = floating.points["lm_head"].copy()
    array[0] = np.nan
    report = judged(case, replace(floating, points={"lm_head": array}), budget)
    assert report.verdict == "conforming"
    assert any("1 of 24 tokens, the first at 0" in text for text in report.left_out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: np.full_like(a, np.nan), "no log-probability is known"),
        (lambda a: a + 30, "expected at most 0"),
        (lambda a: a[:, :100], "has shape"),
    ],
)
def test_what_are_no_log_probabilities_is_inconclusive(
    case: Golden, floating: Dump, budget: PartialBudget, change: object, said: str
) -> None:
    assert callable(change)
    points = {"lm_head": change(floating.points["lm_head"])}
    report = judged(case, replace(floating, points=points), budget)
    assert (report.verdict, said in report.reason) == ("inconclusive", True)


def test_nan_of_logits_that_are_not_declared_partial_diverges(
    golden_float_kv: Golden, floating: Dump
) -> None:
    report = judge(golden_float_kv, replace(floating, meta={}), model=tiny("float"))
    assert report.verdict == "diverges"


def test_without_the_model_it_is_inconclusive(case: Golden, floating: Dump) -> None:
    assert judge(case, floating).verdict == "inconclusive"


def test_a_budget_survives_its_file(budget: PartialBudget) -> None:
    again = PartialBudget.from_arrays(*budget.to_arrays())
    assert np.array_equal(again.scales, budget.scales)
    assert again.precision == budget.precision
    with pytest.raises(ValueError, match="schema"):
        PartialBudget.from_arrays({}, {"schema": 99})


def test_legal_runs_that_the_budget_has_not_seen_are_seldom_accused() -> None:
    """200 runs state 1 %; of 100 fresh ones more than 5 would be seen once in 1,900 draws."""
    tokens = np.array(prompt(6))
    places, precision = np.arange(6), PRESETS["float32"]
    model = tiny("float")
    legal = PromptRuns(model, tokens, places, precision)
    expected = partial.log_softmax(legal.oracle.free["lm_head"])
    seen = seen_in(window(expected), K)
    budget = measure(model, tokens, places, precision, seen, runs=200)
    units = []
    for seed in range(1000, 1100):
        run = shown_through(partial.log_softmax(legal.trace(seed)["lm_head"]), seen)
        values = view(run, expected, seen).values
        units.append(max(values[name] / budget.scale(name) for name in STATISTICS))
    assert sum(unit > budget.threshold().floor_units for unit in units) <= 5


def test_a_dump_is_judged_without_a_budget_at_hand(floating: Dump, budget: PartialBudget) -> None:
    """As ``golden compare`` meets it: measured when it comes."""
    tokens = tuple(floating.tokens[:3].tolist())
    whole = golden_of(tiny("float"), tokens, _no_budget())
    few = replace(
        floating, tokens=floating.tokens[:3], positions=floating.positions[:3],
        points={"lm_head": floating.points["lm_head"][:3]},
    )  # fmt: skip
    report = judge(replace(whole, budget_meta=None), few, model=tiny("float"))
    assert report.verdict == "conforming", report.reason
    assert report.judged_by["runs"] == DEFAULT_RUNS


def _no_budget() -> object:
    class Empty:
        def to_arrays(self) -> tuple[dict[str, Array], None]:
            return {}, None

    return Empty()
