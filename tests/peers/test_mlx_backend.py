"""mlx-lm as a backend of the kit: what it declares it can do, and what the judge says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref import checkpoint
from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.backend import BackendError
from laguna_ref.conformance.diagnosis.diagnose import diagnose
from laguna_ref.conformance.diagnosis.misfit import Observation
from laguna_ref.conformance.diagnosis.prompts import drawn
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.conformance.replay import with_forced
from laguna_ref.load import EMBEDDED
from laguna_ref.trace import trace_points
from tests import tolerances
from tests.peers.judged import oracle_of, published_rope, summary, verdict

pytestmark = pytest.mark.peer

TOKENS = list(range(80, 110))
UNSEEN = (".k_cached", ".v_cached", ".self_attn.gate", ".mlp.experts")
"""Ends of the names of what no module of mlx-lm's returns."""
DEFAULT_FACTOR = 0.1 * np.log(32) + 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mlx-lm computes what is configured: without the key that it does not read."""
    return published_rope(tmp_path_factory.mktemp("mlx") / "model", attention_factor=None)


@pytest.fixture(scope="module")
def as_published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_rope(tmp_path_factory.mktemp("mlx") / "published")


@pytest.fixture(scope="module")
def backend(folder: Path) -> Any:
    return opener("mlx")(folder)


@pytest.fixture(scope="module")
def oracle(backend: Any, folder: Path) -> Any:
    return oracle_of(backend, folder)


def assert_logits(found: Any, expected: Any) -> None:
    tolerances.assert_within(found, expected, tolerances.FLOAT32_ERROR, "lm_head")


def test_logits_are_the_oracles(backend: Any, oracle: Any) -> None:
    assert_logits(backend.logits(TOKENS), oracle(TOKENS))


def test_the_trace_has_what_modules_return(backend: Any, oracle: Any) -> None:
    found = backend.trace(TOKENS, ["*"])
    assert list(found) == [p for p in trace_points(oracle.config) if not p.endswith(UNSEEN)]
    assert_logits(found["lm_head"], oracle(TOKENS))


def test_watching_leaves_the_model_as_it_was(backend: Any) -> None:
    before = backend.logits(TOKENS)
    kinds = [type(module) for _, module in backend.model.named_modules()]
    backend.trace(TOKENS, ["*"])
    assert [type(module) for _, module in backend.model.named_modules()] == kinds
    assert np.array_equal(backend.logits(TOKENS), before)


def test_chunks_and_batches_give_the_logits_of_the_whole(backend: Any, oracle: Any) -> None:
    expected = oracle(TOKENS)
    state, first = backend.prefill(TOKENS[:7])
    _, second = backend.decode(state, TOKENS[7:])
    _, again = backend.decode(state, TOKENS[7:])
    assert np.array_equal(second, again)  # the state was left as it was
    assert_logits(np.concatenate([first, second]), expected)
    long, short = backend.batch([TOKENS, TOKENS[:5]])
    assert_logits(long, expected)
    assert_logits(short, expected[:5])


@pytest.mark.parametrize("with_weights", [False, True])
def test_forced_routing(backend: Any, oracle: Any, with_weights: bool) -> None:
    point = "model.layers.2.mlp.topk_ids"
    other = (backend.trace(TOKENS, [point])[point].astype(np.int64) + 1) % 8
    weights = np.full(other.shape, 0.25, np.float32) if with_weights else None
    routing = {2: (other, weights)}
    expected = with_forced(oracle, routing)(TOKENS)
    assert_logits(backend.logits(TOKENS, routing=routing), expected)


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "logits"])
def test_it_conforms_without_the_attention_factor(
    backend: Any, folder: Path, traced: bool, figures: dict[str, str]
) -> None:
    report = verdict(backend, folder, traced=traced)
    how = "traced" if traced else "logits only"
    figures[f"mlx, published RoPE without attention_factor, {how}"] = summary(report)
    assert report.verdict == "conforming", report.reason


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "logits"])
def test_it_ignores_the_attention_factor(
    as_published: Path, traced: bool, figures: dict[str, str]
) -> None:
    """mlx-lm#1507: ``YarnRoPE`` always derives the factor."""
    folder = as_published
    backend = opener("mlx")(folder)
    assert "rope_parameters.full_attention.attention_factor" in backend.config["not read"]
    factor = backend.config["as computed"]["attention_factor"]
    assert factor["full_attention"] == pytest.approx(DEFAULT_FACTOR)
    assert factor["sliding_attention"] == 1.0
    report = verdict(backend, folder, traced=traced)
    figures[f"mlx, published RoPE, {'traced' if traced else 'logits only'}"] = summary(report)
    assert report.verdict == "diverges"
    if traced:
        assert report.first_divergence.point == "model.layers.0.self_attn.q_rope"


@pytest.mark.slow
def test_laguna_tiny_is_handed_over_dense_and_diverges_for_the_same_reason(
    figures: dict[str, str],
) -> None:
    report = verdict(opener("mlx")(EMBEDDED), EMBEDDED)
    figures["mlx on laguna-tiny"] = summary(report)
    assert report.verdict == "diverges"
    assert report.first_divergence.point == "model.layers.0.self_attn.q_rope"


def test_what_it_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no argument"):
        opener("mlx:cuda")
    small = checkpoint.preset("xs2", layer_ids=[0, 1]) | {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 2,
        "num_attention_heads_per_layer": [2, 2], "num_key_value_heads": 1, "head_dim": 16,
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "gating": "per-element",
    }  # fmt: skip
    checkpoint.write(tmp_path / "model", small, checkpoint.synth(small))
    with pytest.raises(BackendError, match="mlx-lm cannot load it"):
        opener("mlx")(tmp_path / "model")


def test_diagnose_names_the_ignored_key_from_logits_alone(as_published: Path) -> None:
    """With the value that it uses instead; without the key nothing is wrong (above)."""
    backend = opener("mlx")(as_published)
    oracle = oracle_of(backend, as_published)
    found = [
        Observation(np.array(p.tokens), np.arange(len(p.tokens)),
                    {"lm_head": backend.logits(p.tokens)})
        for p in drawn(oracle.config) if p.positions is None
    ]  # fmt: skip
    result = diagnose(oracle, found, PRESETS["float32"])
    assert result.verdict == "named"
    cause = result.causes[0]
    assert cause.fault == "rope.attention_factor_derived"
    assert cause.parameters["attention_factor"] == pytest.approx(DEFAULT_FACTOR)
    assert "https://github.com/ml-explore/mlx-lm/pull/1507" in cause.references
