"""A backend put to several cases: one threshold, one verdict, and nothing lost on the way."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

import laguna_ref
from laguna_ref.conformance import budget_cache
from laguna_ref.conformance.adapters.dump_folder import DumpBackend
from laguna_ref.conformance.adapters.oracle_backend import OracleBackend
from laguna_ref.conformance.backend import BackendDiedError
from laguna_ref.conformance.budget import FALSE_ALARM_RATE, Budget
from laguna_ref.conformance.comparisons import MODES
from laguna_ref.conformance.conform import _thresholds, conform, oracle_of
from laguna_ref.conformance.conform_report import ConformReport
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.prepared import Prepared, chosen, prepared
from laguna_ref.conformance.report import Report
from laguna_ref.conformance.sources import ROOT, files_of
from laguna_ref.errors import InputError
from laguna_ref.golden.errors import GoldenError
from laguna_ref.golden.verify import COMMITTED_GOLDENS
from laguna_ref.load import EMBEDDED
from tests.conformance import factories
from tests.conformance.golden_pairs import two_of_one_name
from tests.small import small, small_config

RUNS = 60
NAMES = ("one-token", "short-fp8")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "laguna_ref" / "budgets"


@pytest.fixture(scope="module")
def oracle() -> laguna_ref.Laguna:
    return oracle_of(factories.good(EMBEDDED), None)


@pytest.fixture(scope="module")
def cases(oracle: laguna_ref.Laguna) -> list[Prepared]:
    return chosen(prepared(oracle, ()), NAMES)


def put(backend: Any, oracle: laguna_ref.Laguna, cases: Sequence[Prepared]) -> ConformReport:
    return conform(backend, oracle, cases, runs=RUNS)


def test_a_legal_backend_conforms_by_its_trace(
    oracle: laguna_ref.Laguna, cases: list[Prepared]
) -> None:
    report = put(factories.good(EMBEDDED), oracle, cases)
    assert report.verdict == "conforming", report.reason
    assert report.exit_code == 0
    assert [case.case for case in report.cases] == list(NAMES)
    thresholds = {case.threshold for case in report.cases}
    assert len(thresholds) == 1  # all cases together
    assert report.cases[0].judged_by["modes"] == ["added", "layers", "replayed"]
    assert report.routing.compared == (1 + 3) * 7


def test_logits_alone_are_judged_too(oracle: laguna_ref.Laguna, cases: list[Prepared]) -> None:
    assert put(factories.of_logits(EMBEDDED), oracle, cases).verdict == "conforming"
    report = put(factories.scaled(EMBEDDED), oracle, cases)
    assert report.verdict == "diverges"
    assert report.cases[0].judged_by["modes"] == ["logits"]
    raw = report.to_json()
    assert raw["first_divergence"]["point"] == "lm_head"
    assert {point["case"] for point in raw["points"]} <= set(NAMES)


def test_log_probabilities_are_judged_through_their_window(
    oracle: laguna_ref.Laguna, cases: list[Prepared]
) -> None:
    report = put(factories.top_twenty(EMBEDDED), oracle, cases)
    assert report.verdict == "conforming", report.reason
    assert report.cases[0].judged_by["modes"] == ["logprobs"]


def test_a_budget_is_measured_once(
    oracle: laguna_ref.Laguna, cases: list[Prepared], cache: Path
) -> None:
    said: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        said.append(what)

    put(factories.of_logits(EMBEDDED), oracle, cases)
    before = sorted(cache.iterdir())
    conform(factories.of_logits(EMBEDDED), oracle, cases, runs=RUNS, progress=progress)
    assert not any("noise" in what for what in said)
    assert sorted(cache.iterdir()) == before
    conform(factories.of_logits(EMBEDDED), oracle, cases[:1], runs=4, progress=progress)
    assert any("noise of case 1 of 1, one-token" in what for what in said)


def budget_with_seed(seed: int, held_out: int) -> Budget:
    maxima = np.random.default_rng(seed).random((held_out, len(MODES)))
    none = np.zeros(0)
    return Budget(PRESETS["float32"], (), none, maxima, none, none, held_out + 100, seed)


@pytest.mark.parametrize("held_out", [300, 3000])
def test_budgets_measured_apart_state_the_rate_of_the_whole_report(held_out: int) -> None:
    budgets = [budget_with_seed(seed, held_out) for seed in range(14)]
    thresholds = _thresholds(budgets, ["logits"])
    alone = [budget.threshold(["logits"], 0.01 / 14) for budget in budgets]
    assert [t.floor_units for t in thresholds] == [t.floor_units for t in alone]
    assert len({(t.rate, t.confident_rate) for t in thresholds}) == 1
    assert thresholds[0].rate == pytest.approx(1 - (held_out / (held_out + 1)) ** 14, rel=1e-9)
    sure = 1 - math.prod(1 - t.confident_rate for t in alone)
    assert thresholds[0].confident_rate == pytest.approx(sure, rel=1e-9)
    assert sure > thresholds[0].rate > alone[0].rate
    if held_out == 300:
        assert thresholds[0].rate > 4 * FALSE_ALARM_RATE


def test_budgets_of_one_seed_share_a_threshold() -> None:
    thresholds = _thresholds([budget_with_seed(3, 300)] * 14, ["logits"])
    assert len(set(thresholds)) == 1
    assert thresholds[0].rate <= FALSE_ALARM_RATE


def test_a_damaged_file_of_the_cache_is_measured_anew(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "k.safetensors").write_bytes(b"nothing")
    name = budget_cache.Name(committed="none", exact="k")
    arrays, meta = budget_cache.kept(name, lambda: ({"a": np.ones(2)}, {"b": 1}))
    again, kept = budget_cache.kept(name, lambda: pytest.fail("measured twice"))
    assert (again["a"].tolist(), kept) == ([1.0, 1.0], {"b": 1})
    assert (arrays["a"].tolist(), meta) == ([1.0, 1.0], {"b": 1})


def test_a_budget_depends_on_the_forward_pass_and_not_on_reports() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in files_of(budget_cache.MEASURING)}
    assert {
        "laguna_ref/model.py", "laguna_ref/kv_cache.py", "laguna_ref/ops/router.py",
        "laguna_ref/numerics.py", "laguna_ref/checkpoint/formats/packed_int.py",
        "laguna_ref/conformance/varied_engine.py", "laguna_ref/conformance/budget.py",
    } <= names  # fmt: skip
    assert not {name for name in names if "html" in name or "terminal" in name or "/cli/" in name}


def test_one_case_that_fails_is_inconclusive_and_the_others_are_judged(
    oracle: laguna_ref.Laguna, cases: list[Prepared]
) -> None:
    report = put(factories.failing(EMBEDDED), oracle, cases)
    assert [case.verdict for case in report.cases] == ["conforming", "inconclusive"]
    assert report.cases[1].reason == "the backend failed: RuntimeError: out of memory"
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)


@pytest.mark.parametrize("value", [None, np.float32(3), np.zeros((0, 3)), np.array("x")])
def test_a_trace_of_no_numbers_is_inconclusive(
    oracle: laguna_ref.Laguna, cases: list[Prepared], value: Any
) -> None:
    report = put(factories.tracing(value), oracle, cases)
    assert report.verdict == "inconclusive"
    assert "the backend failed: BackendError: model.norm" in report.reason


def test_one_that_ends_the_program_has_failed_and_the_others_are_judged(
    oracle: laguna_ref.Laguna, cases: list[Prepared]
) -> None:
    report = put(factories.exits_when_asked(EMBEDDED), oracle, cases)
    assert report.verdict == "inconclusive"
    assert report.cases[0].reason == "the backend failed: SystemExit: 0"


def test_an_option_that_no_oracle_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown option of its oracle.*found 1"):
        oracle_of(factories.with_an_unknown_option(EMBEDDED), None)


def test_one_that_dies_is_asked_no_more(oracle: laguna_ref.Laguna, cases: list[Prepared]) -> None:
    asked = []

    def logits(tokens: Sequence[int]) -> Any:
        asked.append(tokens)
        raise BackendDiedError("gone")

    report = put(SimpleNamespace(name="dead", capabilities=(), logits=logits), oracle, cases)
    assert len(asked) == 1
    assert report.verdict == "inconclusive"
    assert report.reason == "gone; 0 of 2 cases had been judged"


def test_a_divergence_stands_even_if_it_dies_later(
    oracle: laguna_ref.Laguna, cases: list[Prepared]
) -> None:
    inner = factories.good(EMBEDDED)

    def logits(tokens: Sequence[int]) -> Any:
        if len(tokens) > 1:
            raise BackendDiedError("gone")
        return inner.logits(tokens) * 1.01

    report = put(SimpleNamespace(name="both", capabilities=(), logits=logits), oracle, cases)
    assert report.verdict == "diverges"


def test_nan_of_a_whole_backend_diverges(oracle: laguna_ref.Laguna, cases: list[Prepared]) -> None:
    def logits(tokens: Sequence[int]) -> Any:
        return np.full((len(tokens), 3072), np.nan)

    report = put(SimpleNamespace(name="nan", capabilities=(), logits=logits), oracle, cases)
    assert report.verdict == "diverges"
    json.dumps(report.to_json(), allow_nan=False)


def test_cases_that_it_cannot_be_put_are_named_and_do_not_count(
    oracle: laguna_ref.Laguna,
) -> None:
    far = chosen(prepared(oracle, ()), ["far-positions"])
    report = put(factories.of_logits(EMBEDDED), oracle, far)
    assert report.left_out == ["far-positions: the backend takes no positions"]
    assert report.verdict == "inconclusive"
    assert "nothing was compared" in report.reason


def test_a_folder_of_dumps_is_judged_where_there_is_a_dump(
    oracle: laguna_ref.Laguna, cases: list[Prepared], tmp_path: Path
) -> None:
    tokens = list(cases[1].case.tokens)
    trace = factories.good(EMBEDDED).trace(tokens, ["*"])
    arrays = {"tokens": np.array(tokens), "positions": np.arange(len(tokens)), **trace}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp_path / "x.safetensors")
    report = put(DumpBackend(tmp_path), oracle, cases)
    assert report.verdict == "conforming", report.reason
    assert report.left_out == ["one-token: no dump of this prompt"]


def dumped(folder: Path, case: Prepared, lm_head: Any, **meta: str) -> DumpBackend:
    tokens = np.array(case.case.tokens)
    arrays = {"tokens": tokens, "positions": np.arange(len(tokens)), "lm_head": lm_head}
    save_file(arrays, folder / "x.safetensors", metadata=meta)
    return DumpBackend(folder)


def test_a_dump_of_another_config_is_inconclusive(
    oracle: laguna_ref.Laguna, cases: list[Prepared], tmp_path: Path
) -> None:
    logits = factories.good(EMBEDDED).logits(cases[0].case.tokens)
    raw = oracle.config.to_dict()
    for eps, verdict in ((raw["rms_norm_eps"], "conforming"), (1e-5, "inconclusive")):
        config = json.dumps(raw | {"rms_norm_eps": eps})
        report = put(dumped(tmp_path, cases[0], logits, config=config), oracle, cases)
        assert report.verdict == verdict, report.reason
        assert report.to_json()["backend"]["config"]["rms_norm_eps"] == eps
    assert "another config: rms_norm_eps is 1e-05" in report.reason


def test_a_dump_says_how_many_were_asked_for(
    oracle: laguna_ref.Laguna, cases: list[Prepared], tmp_path: Path
) -> None:
    """Not stated, one of the five might be the token that came next."""
    shown = factories.likeliest(factories.good(EMBEDDED).logits(cases[0].case.tokens), 5)
    for stated, k in (({}, 4), ({"logprobs_k": "5"}, 5)):
        backend = dumped(tmp_path, cases[0], shown, logits="logprobs", **stated)
        report = put(backend, oracle, cases)
        assert report.verdict == "conforming", report.reason
        assert report.cases[0].judged_by["logprobs_k"] == k


def test_a_mistake_is_one_of_the_answer_or_of_the_dump(
    oracle: laguna_ref.Laguna, cases: list[Prepared], tmp_path: Path
) -> None:
    """A row short everywhere, routing too; of the answer where a backend was asked."""
    one = cases[1:]
    tokens = list(one[0].case.tokens)
    trace = factories.good(EMBEDDED).trace(tokens, ["*"])
    short = {name: array[:-1] for name, array in trace.items()}
    live = factories.tracing(None)
    live.trace = lambda tokens, points: short
    arrays = {"tokens": np.array(tokens), "positions": np.arange(len(tokens)), **short}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp_path / "x.safetensors")
    for backend, what in ((live, "answer"), (DumpBackend(tmp_path), "dump")):
        report = put(backend, oracle, one)
        assert report.verdict == "inconclusive", report.reason
        assert report.cases[0].reason.startswith(
            f"the {what} is mistaken: model.embed_tokens has shape ["
        )
        other = {"answer": "dump", "dump": "answer"}[what]
        text = io.StringIO()
        report.cases[0].print(Console(file=text, width=160))
        assert f" {other} " not in text.getvalue()


def test_a_float_cache_is_judged_as_one(cases: list[Prepared]) -> None:
    model = laguna_ref.load(engine="numpy", kv_cache="float")
    backend = OracleBackend(model, "float")
    backend.oracle = {"dequant": "exact", "kv_cache": "float"}  # type: ignore[attr-defined]
    oracle = oracle_of(backend, None)
    assert not any(kv.fp8 for kv in oracle.kv_formats)
    own = chosen(prepared(oracle, ()), NAMES)
    assert put(backend, oracle, own).verdict == "conforming"


def test_prompts_are_each_taken_once(oracle: laguna_ref.Laguna) -> None:
    found = prepared(oracle, [COMMITTED_GOLDENS, COMMITTED_GOLDENS])
    prompts = [(case.case.tokens, case.case.positions) for case in found]
    assert len(set(prompts)) == len(prompts)
    assert 10 <= len(prompts) < len(list(COMMITTED_GOLDENS.iterdir()))


def test_goldens_of_one_name_and_two_prompts_are_told_apart(
    oracle: laguna_ref.Laguna, tmp_path: Path
) -> None:
    two_of_one_name(tmp_path)
    found = prepared(oracle, [tmp_path])
    assert [case.case.name for case in found] == ["short", "short (2)"]
    assert [case.case.tokens for case in found] == [(5, 6), (7, 8)]
    assert chosen(found, ["short (2)"]) == found[1:]


def test_another_checkpoint_has_the_committed_cases_and_refuses_the_goldens() -> None:
    model = small(
        small_config(vocab_size=3072, sliding_window=16, max_position_embeddings=16384)
    ).load(engine="numpy", numerics="float64")
    found = prepared(model, ())
    assert "one-token" in [case.case.name for case in found]
    with pytest.raises(GoldenError):
        prepared(model, [COMMITTED_GOLDENS])


def test_a_case_of_no_golden_is_refused(oracle: laguna_ref.Laguna) -> None:
    with pytest.raises(InputError, match="no such case"):
        chosen(prepared(oracle, ()), ["nothing"])


# The verdict of the whole


def case(verdict: str, name: str = "c") -> Report:
    return Report(verdict, "because", name, {"name": "b"}, None, {})


def law(status: str) -> Any:
    return SimpleNamespace(law="causality", status=status, examples=3, detail="d", reproduce="r")


@pytest.mark.parametrize(
    ("cases", "laws", "verdict"),
    [
        (["conforming"], [], "conforming"),
        (["conforming"], ["holds", "not applicable"], "conforming"),
        (["conforming"], ["holds", "failed"], "inconclusive"),
        (["conforming"], ["failed", "broken"], "diverges"),
        (["conforming"], ["holds", "broken"], "diverges"),
        (["inconclusive"], ["broken"], "diverges"),
        (["conforming", "diverges"], ["holds"], "diverges"),
        (["conforming", "inconclusive"], ["holds"], "inconclusive"),
        ([], ["holds"], "inconclusive"),
        ([], [], "inconclusive"),
    ],
)
def test_the_verdict_of_the_whole(cases: list[str], laws: list[str], verdict: str) -> None:
    report = ConformReport({"name": "b"}, None, [case(v) for v in cases], [law(s) for s in laws])
    assert report.verdict == verdict
    assert report.reason


def test_a_dead_backend_never_conforms() -> None:
    report = ConformReport({"name": "b"}, None, [case("conforming")], died="gone")
    assert report.verdict == "inconclusive"


@pytest.mark.parametrize("status", ["holds", "broken", "failed"])
def test_every_status_of_a_law_that_was_put_has_a_colour(status: str) -> None:
    pytest.importorskip("jinja2")
    backend = {"name": "b", "version": None}
    page = ConformReport(backend, None, [case("conforming")], [law(status)]).to_html()
    assert f'<td class="{status}">{status}</td>' in page
    assert re.search(rf"\.{status}\b[^{{]*{{ color: #", page)


def test_the_report_is_said_in_three_ways(oracle: laguna_ref.Laguna, cases: list[Prepared]) -> None:
    report = replace(put(factories.scaled(EMBEDDED), oracle, cases), laws=[law("broken")])
    raw = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {
        "schema", "backend", "model", "verdict", "first_divergence", "points", "routing", "laws",
        "judged_by", "reason", "cases",
    } <= set(raw)  # fmt: skip
    assert raw["laws"][0]["status"] == "broken"
    assert len(raw["cases"]) == 2
    text = io.StringIO()
    report.print(Console(file=text, width=160))
    for expected in ("one-token", "causality", "--reproduce r", "diverges  scaled"):
        assert expected in text.getvalue()
    pytest.importorskip("matplotlib")
    page = report.to_html()
    assert "causality" in page
    assert "<svg" in page
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in page
