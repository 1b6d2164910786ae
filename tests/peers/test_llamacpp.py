"""llama.cpp on exported checkpoints: the same function as ours, and no other that would pass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from llama_cpp import LLAMA_FTYPE_MOSTLY_Q4_0
from numpy.typing import NDArray

import laguna_ref
from laguna_ref import checkpoint
from laguna_ref.bench.peers import LEAST_AGREEMENT, PEERS
from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.adapters import gguf_export
from laguna_ref.conformance.adapters.gguf_export import (
    ExportError,
    FloatName,
    default_attention_factor,
)
from laguna_ref.conformance.adapters.llamacpp_model import LlamaCppError, LlamaCppModel, quantise
from laguna_ref.conformance.adapters.speed import Agreement
from laguna_ref.rope_spec import RopeSpec
from tests import tolerances
from tests.peers.compare import scale_of
from tests.peers.settings import PEER_CONFIGS, draw
from tests.strategies import Example, examples, random_tensors, small_xs2

pytestmark = pytest.mark.peer

Logits = NDArray[np.float32]
VOCABULARY = 96
PROMPT: list[int] = np.random.default_rng(7).integers(VOCABULARY, size=40).tolist()
"""Five windows of ``small_xs2``."""


def written(folder: Path, **changes: Any) -> Path:
    layer_ids = changes.pop("layer_ids", (0, 1, 4, 31))
    config = small_xs2(layer_ids=layer_ids) | changes
    checkpoint.write(folder / "model", config, random_tensors(config, seed=5))
    return folder / "model"


def exported(model: Path, dtype: FloatName = "F32") -> Path:
    file = model.parent / f"{dtype}.gguf"
    gguf_export.export(checkpoint.open(model), file, dtype)
    return file


def logits_of(file: Path, tokens: list[int], *, exact: bool = False) -> Logits:
    peer = LlamaCppModel(file, context=len(tokens), threads=1, exact=exact)
    logits = peer.run(tokens, last_only=False)
    peer.close()
    return logits


def errors(model: Path, tokens: list[int]) -> NDArray[np.float64]:
    """Of llama.cpp's logits in float32, the greatest of each token, of the logits' scale."""
    truth = laguna_ref.load(model, engine="numpy", numerics="float64", kv_cache="float")(tokens)
    found = logits_of(exported(model), tokens, exact=True)
    greatest: NDArray[np.float64] = np.abs(found - truth).max(axis=1) / scale_of(truth)
    return greatest


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_ids": (0, 1, 2, 3), "gating": "per-element"},
        {"layer_ids": (1, 2, 31), "tie_word_embeddings": True},  # no full layer
        {"layer_ids": (0, 4, 36), "norm_topk_prob": False},  # no sliding one
        {"layer_ids": (0, 1), "moe_router_score_func": "sqrtsoftplus"},
        {"layer_ids": (0, 1), "moe_router_score_func": "softmax"},
    ],
    ids=str,
)
def test_a_float32_export_is_the_same_function(
    tmp_path: Path, figures: dict[str, str], changes: dict[str, Any]
) -> None:
    found = errors(written(tmp_path, **changes), PROMPT).max()
    figures[f"llama.cpp float32 {changes or ''}"] = f"greatest error {found:.1e}"
    assert found <= tolerances.FLOAT32_ERROR


def test_any_laguna_that_is_not_refused_is_the_same_function(figures: dict[str, str]) -> None:
    of_tokens: list[float] = []

    @draw(PEER_CONFIGS)
    @given(examples(bits=(4, 8)) | examples())
    def agree(example: Example) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(Path(folder) / "model", example.config, example.tensors())
            try:
                found = errors(Path(folder) / "model", list(example.tokens))
            except ExportError:
                assume(False)
            of_tokens.extend(found.tolist())

    agree()
    # A tied choice of experts may go either way.
    off = np.array(of_tokens) > tolerances.FLOAT32_ERROR
    figures["llama.cpp float32, any config"] = (
        f"{len(off)} tokens, {off.sum()} off, others {max(np.array(of_tokens)[~off]):.1e} or less"
    )
    assert off.sum() <= tolerances.TIED_TOKENS * len(off)


def test_what_bench_times_is_held_against_our_logits(tmp_path: Path) -> None:
    """Defaults and bfloat16, where noise is largest; Q4_0 is a coarser model."""
    model = written(tmp_path, shared_expert_intermediate_size=64)
    ours = Agreement(str(model), dequant="bf16")
    source, target = exported(model, "BF16"), tmp_path / "Q4_0.gguf"
    quantise(source, target, LLAMA_FTYPE_MOSTLY_Q4_0, threads=1)
    for file, variant in ((source, "BF16"), (target, "Q4_0")):
        agreement = ours.with_logits(logits_of(file, ours.tokens))
        assert 1.0 > agreement >= PEERS["llamacpp"].variants[variant].least_agreement


def without_attention_factor(config: LagunaConfig) -> LagunaConfig:
    """What llama.cpp's own converter leaves to its default."""

    def defaulted(rope: RopeSpec) -> RopeSpec:
        return replace(rope, attention_factor=default_attention_factor(rope))

    layers = tuple(replace(layer, rope=defaulted(layer.rope)) for layer in config.layers)
    return replace(config, layers=layers)


@pytest.mark.parametrize(
    "wrong",
    [
        without_attention_factor,
        lambda config: replace(config, moe_routed_scaling_factor=1.0),
        lambda config: replace(config, norm_topk_prob=False),
        lambda config: replace(config, moe_router_score_func="softmax"),
    ],
    ids=["attention factor", "scaling factor", "renormalisation", "scores"],
)
def test_another_function_would_be_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[LagunaConfig], LagunaConfig],
) -> None:
    def add_metadata(writer: Any, config: LagunaConfig, **options: Any) -> None:
        right(writer, wrong(config), **options)

    right = gguf_export.add_metadata
    monkeypatch.setattr(gguf_export, "add_metadata", add_metadata)
    model = written(tmp_path)
    ours = Agreement(str(model))
    assert ours.with_logits(logits_of(exported(model), ours.tokens)) < LEAST_AGREEMENT


def test_a_sequence_goes_on_where_it_was_and_can_be_forgotten(tmp_path: Path) -> None:
    file = exported(written(tmp_path))
    whole = logits_of(file, PROMPT, exact=True)
    peer = LlamaCppModel(file, context=len(PROMPT), threads=2, exact=True)
    peer.run(PROMPT[20:])
    peer.forget()
    parts = [PROMPT[:30], *([token] for token in PROMPT[30:])]
    found = np.array([peer.run(part)[0] for part in parts])
    assert np.abs(found - whole[29:]).max() <= tolerances.FLOAT32_ERROR * scale_of(whole)
    peer.close()


def test_what_llamacpp_cannot_do_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"not a model")
    with pytest.raises(LlamaCppError, match=r"cannot load no\.gguf"):
        LlamaCppModel(tmp_path / "no.gguf", context=8, threads=1)
    with pytest.raises(LlamaCppError, match=r"cannot quantise no\.gguf"):
        quantise(tmp_path / "no.gguf", tmp_path / "q.gguf", LLAMA_FTYPE_MOSTLY_Q4_0, threads=1)
    peer = LlamaCppModel(exported(written(tmp_path)), context=8, threads=1)
    with pytest.raises(LlamaCppError, match="decoding failed"):
        peer.run([VOCABULARY])
    peer.close()
