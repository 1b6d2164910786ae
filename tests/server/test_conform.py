"""The conformance kit judges our own endpoint, a server process on laguna-tiny."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.adapters.openai_backend import OpenAIBackend
from laguna_ref.conformance.conform import conform, oracle_of
from laguna_ref.conformance.partial import log_softmax
from laguna_ref.conformance.prepared import chosen, prepared
from laguna_ref.load import EMBEDDED, load
from laguna_ref.model import Laguna
from tests.server.serving import Running

ENVIRONMENT = dict(os.environ)
"""With the cache of compiled kernels where it is."""
TOKENS = [2, 381, 694, 2195]


@pytest.fixture(scope="module")
def model() -> Laguna:
    """Its kernels are loaded before the place of their cache is another."""
    model = load(threads=1)
    model(TOKENS)
    return model


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(model: Laguna, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def served() -> Iterator[Running]:
    running = Running(env=ENVIRONMENT)
    yield running
    running.close()


def opened(url: str, options: str = "") -> OpenAIBackend:
    backend = opener(f"openai:{url}{options}")(EMBEDDED)
    assert isinstance(backend, OpenAIBackend)
    return backend


def test_every_manner_gives_the_models_own_log_probabilities(
    served: Running, model: Laguna
) -> None:
    expected = log_softmax(model(TOKENS))
    for mode in ("prompt_logprobs", "echo", "continue"):
        found = opened(served.url, f"?mode={mode}").logits(TOKENS)
        shown = ~np.isnan(found)
        assert (shown.sum(axis=1) >= 20).all()
        assert np.array_equal(found[shown], expected[shown]), mode


def test_it_conforms_and_killed_in_the_middle_it_is_inconclusive(served: Running) -> None:
    backend = opened(served.url)
    assert "mode prompt_logprobs" in backend.version
    assert "laguna-ref, model laguna-tiny" in backend.version
    oracle = oracle_of(backend, None)
    cases = chosen(prepared(oracle, ()), ["one-token", "short-float", "short-fp8"])
    report = conform(backend, oracle, cases[:2], runs=40)
    assert (report.verdict, report.exit_code) == ("conforming", 0), report.reason

    asked = 0
    real = backend.logits

    def logits(tokens):  # type: ignore[no-untyped-def]
        nonlocal asked
        asked += 1
        if asked == 2:
            threading.Timer(0.01, served.process.kill).start()
            time.sleep(0.3)
        return real(tokens)

    backend.logits = logits  # type: ignore[method-assign]
    report = conform(backend, oracle, cases, runs=40)
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    assert [case.verdict for case in report.cases] == ["conforming", "inconclusive", "inconclusive"]
    assert "does not answer" in report.reason
