"""llama.cpp as a backend of the kit: logits, a cache that is taken up again, and its verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref import checkpoint
from laguna_ref.conformance.adapters import llamacpp_logits, opener
from laguna_ref.conformance.backend import BackendError
from laguna_ref.load import EMBEDDED
from tests import tolerances
from tests.peers.judged import oracle_of, published_rope, summary, verdict
from tests.strategies import random_tensors, small_xs2

pytestmark = pytest.mark.peer

TOKENS = list(range(80, 110))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_rope(tmp_path_factory.mktemp("llamacpp") / "model")


@pytest.fixture(scope="module")
def backend(folder: Path) -> Any:
    return opener("llamacpp:betas")(folder)


@pytest.fixture(scope="module")
def oracle(backend: Any, folder: Path) -> Any:
    return oracle_of(backend, folder)


def assert_logits(found: Any, expected: Any) -> None:
    tolerances.assert_within(found, expected, tolerances.FLOAT32_ERROR, "lm_head")


def test_chunks_give_the_logits_of_the_whole(backend: Any, oracle: Any) -> None:
    expected = oracle(TOKENS)
    assert_logits(backend.logits(TOKENS), expected)
    state, first = backend.prefill(TOKENS[:7])
    _, second = backend.decode(state, TOKENS[7:])
    backend.logits(TOKENS[::-1])
    _, again = backend.decode(state, TOKENS[7:])
    assert np.array_equal(second, again)  # the state was left as it was
    assert_logits(np.concatenate([first, second]), expected)


def test_a_prompt_longer_than_the_context_makes_room(
    folder: Path, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp_logits, "CONTEXT", 8)
    small = opener("llamacpp:betas")(folder)
    assert_logits(small.logits(TOKENS), oracle(TOKENS))
    state, _ = small.prefill(TOKENS)
    more = TOKENS * 2
    assert_logits(small.decode(state, more)[1], oracle(TOKENS + more)[len(TOKENS) :])


@pytest.mark.parametrize("words", ["betas", "betas,f16"])
def test_it_conforms_where_it_is_given_the_betas(
    folder: Path, words: str, figures: dict[str, str]
) -> None:
    report = verdict(opener(f"llamacpp:{words}")(folder), folder)
    figures[f"llamacpp:{words}, published RoPE"] = summary(report)
    assert report.verdict == "conforming", report.reason


@pytest.mark.parametrize("words", ["", "f16", "converted,betas"])
def test_it_diverges_by_what_it_does_not_read(
    folder: Path, words: str, figures: dict[str, str]
) -> None:
    """beta_fast of the file is not read; attention_factor is not in a converted one."""
    backend = opener(f"llamacpp:{words}".rstrip(":"))(folder)
    report = verdict(backend, folder)
    figures[f"{backend.name}:{words}, published RoPE"] = summary(report)
    assert report.verdict == "diverges"
    key = "attention_factor" if "converted" in words else "beta_fast"
    assert f"rope_parameters.full_attention.{key}" in backend.config["not read"]
    right = checkpoint.open(folder).config.to_dict()["rope_parameters"]["full_attention"][key]
    assert backend.config["as computed"]["yarn"][key] != right


def test_the_betas_alone_are_the_cause(tmp_path: Path, figures: dict[str, str]) -> None:
    """With 32 and 1 in the config, which llama.cpp takes anyway, it conforms."""
    folder = published_rope(tmp_path / "model", beta_fast=32.0)
    report = verdict(opener("llamacpp")(folder), folder)
    figures["llamacpp, published RoPE with beta_fast 32"] = summary(report)
    assert report.verdict == "conforming", report.reason


@pytest.mark.slow
def test_laguna_tiny(figures: dict[str, str]) -> None:
    report = verdict(opener("llamacpp:betas")(EMBEDDED), EMBEDDED)
    figures["llamacpp:betas on laguna-tiny"] = summary(report)
    assert report.verdict == "conforming", report.reason


def test_what_it_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="q4_0"):
        opener("llamacpp:q4_0")
    config = small_xs2() | {"gating_activation": "sigmoid"}
    checkpoint.write(tmp_path / "model", config, random_tensors(config, seed=1))
    with pytest.raises(BackendError, match="no such Laguna"):
        opener("llamacpp")(tmp_path / "model")
