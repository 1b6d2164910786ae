"""llama.cpp on exported checkpoints: the same function as ours, and no other that would pass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import assume, given
from numpy.typing import NDArray

import laguna_ref
from laguna_ref import checkpoint
from laguna_ref.bench.peers import LEAST_AGREEMENT
from laguna_ref.conformance.adapters import gguf_export
from laguna_ref.conformance.adapters.gguf_export import ExportError, FloatName
from laguna_ref.conformance.adapters.llamacpp_model import LlamaCppError, LlamaCppModel, quantise
from laguna_ref.conformance.adapters.speed import AGREEMENT_TOKENS, Agreement
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
    logits = peer.run(tokens, last_only=False).copy()
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
