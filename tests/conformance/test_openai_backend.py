"""``openai:URL`` against server processes, in every manner of showing log-probabilities."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from laguna_ref.conformance import laws
from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.adapters.openai_backend import OpenAIBackend, parse
from laguna_ref.conformance.adapters.openai_modes import Words
from laguna_ref.conformance.backend import BackendDiedError, BackendError
from laguna_ref.conformance.conform import conform, oracle_of
from laguna_ref.conformance.partial import log_softmax
from laguna_ref.conformance.prepared import chosen, prepared
from laguna_ref.errors import InputError
from laguna_ref.load import EMBEDDED
from tests.conformance.samples import tiny

TOKENS = [2, 381, 694, 2195]
SECONDS_TO_START = 120

Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server, gives its URL, and ends it after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(style: str, *options: str) -> str:
        file = tmp_path / f"port-{len(started)}"
        process = subprocess.Popen([
            sys.executable, "-m", "tests.conformance.completions_server", "--style", style,
            "--port-file", str(file), *options,
        ])  # fmt: skip
        started.append(process)
        end = time.monotonic() + SECONDS_TO_START
        while not file.exists():
            assert process.poll() is None, "the server ended before it began"
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.05)
        return f"http://127.0.0.1:{file.read_text()}/v1"

    yield start
    for process in started:
        process.kill()
        process.wait()


def opened(url: str) -> OpenAIBackend:
    backend = opener(f"openai:{url}")(EMBEDDED)
    assert isinstance(backend, OpenAIBackend)
    return backend


@pytest.mark.parametrize(
    ("style", "mode"),
    [
        ("vllm", "prompt_logprobs"),
        ("echo", "echo"),
        ("llama", "completion"),
        ("continue", "continue"),
        ("entries", "continue"),
    ],
)
def test_each_manner_is_found_out_and_read_right(serve: Serve, style: str, mode: str) -> None:
    backend = opened(serve(style))
    assert f"mode {mode}" in backend.version
    assert "model laguna-tiny" in backend.version
    found = backend.logits(TOKENS)
    expected = log_softmax(tiny()(TOKENS))
    if mode in ("completion", "continue"):  # BLAS sums a prefix in another order than the whole
        rows = [tiny()(TOKENS[: end + 1])[-1:] for end in range(len(TOKENS))]
        expected = log_softmax(np.concatenate(rows))
    shown = ~np.isnan(found)
    assert np.array_equal(found[shown], expected[shown])
    least = np.sort(expected, axis=1)[:, -20]
    assert (shown >= (expected >= least[:, None])).all()
    own = [1, 1, 1, 0] if style == "vllm" else [0, 0, 0, 0]
    assert ((shown.sum(axis=1) - 20) <= own).all()


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ("text", "valid string"),
        ("blind", "no log-probabilities"),
        ("bos", "counts other tokens than it was given; expected 1; found 2"),
    ],
)
def test_a_server_that_cannot_be_judged_is_refused_with_what_it_said(
    serve: Serve, style: str, said: str
) -> None:
    url = serve(style)
    with pytest.raises(BackendError) as refused:
        opener(f"openai:{url}?mode=continue&k=20")(EMBEDDED)
    assert said in str(refused.value)


def test_a_window_wider_than_the_server_allows_is_narrowed(serve: Serve) -> None:
    with pytest.raises(BackendError, match="at most 20"):
        opener(f"openai:{serve('continue')}?mode=continue&k=30")(EMBEDDED)


def test_a_busy_server_is_asked_again(serve: Serve) -> None:
    backend = opened(serve("llama", "--busy", "2") + "?mode=completion")
    assert not np.isnan(backend.logits(TOKENS)).all(axis=1).any()


def test_where_nothing_listens_it_has_died() -> None:
    with pytest.raises(BackendDiedError, match="does not answer"):
        opener("openai:http://127.0.0.1:9/v1")(EMBEDDED)


def judged(backend: OpenAIBackend, *names: str, runs: int = 40) -> tuple[str, list[str], str]:
    oracle = oracle_of(backend, None)
    cases = chosen(prepared(oracle, ()), names)
    report = conform(backend, oracle, cases, runs=runs)
    return report.verdict, [case.verdict for case in report.cases], report.reason


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_legal_server_conforms_and_one_that_is_off_diverges(serve: Serve) -> None:
    verdict, cases, reason = judged(opened(serve("vllm")), "one-token", "short-fp8")
    assert (verdict, cases) == ("conforming", ["conforming"] * 2), reason
    verdict, _, _ = judged(opened(serve("vllm", "--scale", "1.01")), "one-token", "short-fp8")
    assert verdict == "diverges"


def test_laws_hold_by_the_likeliest_tokens_alone(serve: Serve) -> None:
    names = ["causality", "repeatable"]
    backend = opened(serve("vllm"))
    held = laws.run(None, backend, examples=4, seed=0, names=names, oracle=oracle_of(backend, None))
    assert [result.status for result in held] == ["holds", "holds"], held
    backend = opened(serve("vllm", "--drift", "0.01"))  # what follows a token changes its row
    found = laws.run(
        None, backend, examples=4, seed=0, names=names, oracle=oracle_of(backend, None)
    )
    assert [result.status for result in found] == ["broken", "holds"], found


def test_a_server_that_dies_in_the_middle_is_inconclusive_and_what_was_judged_is_kept(
    serve: Serve,
) -> None:
    """Two requests probe, one answers the first case, one of seven the second; then it dies."""
    url = serve("llama", "--dies-after", "4")
    backend = opened(f"{url}?mode=completion&concurrency=1")
    oracle = oracle_of(backend, None)
    cases = chosen(prepared(oracle, ()), ["one-token", "short-float", "short-fp8"])
    report = conform(backend, oracle, cases, runs=40)
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    assert [case.verdict for case in report.cases] == ["conforming", "inconclusive", "inconclusive"]
    known = report.cases[1]
    assert known.logits is not None
    assert known.logits.tokens == 1
    assert "1 of 7 tokens were known" in known.reason
    assert "not asked" in report.cases[2].reason
    assert "does not answer" in report.reason
    assert "2 of 3 cases had been judged" in report.reason


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (None, "needs a URL"),
        ("localhost:8000", "needs a URL"),
        ("http://h/v1?colour=red", "unknown option"),
        ("http://h/v1?k=many", "not a number"),
        ("http://h/v1?k=0", "positive"),
        ("http://h/v1?mode=telepathy", "unknown value"),
        ("http://h/v1?precision=float7", "unknown precision"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(argument: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(argument)


def test_arguments_are_read() -> None:
    settings = parse("http://host:8000/v1/?precision=bfloat16&timeout=2.5&k=5#poolside/Laguna")
    assert settings.url == "http://host:8000/v1"
    assert (settings.model, settings.precision) == ("poolside/Laguna", "bfloat16")
    assert (settings.timeout, settings.k) == (2.5, 5)


def test_texts_that_stand_for_no_one_id_are_refused() -> None:
    words = Words(10, {"a": 3})
    assert (words.id_of("a"), words.id_of("token_id:7")) == (3, 7)
    for text in ("b", "token_id:10", "token_id:x"):
        with pytest.raises(BackendError):
            words.id_of(text)
