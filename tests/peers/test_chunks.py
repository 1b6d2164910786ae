"""Prefill in chunks and decoding through the cache, against Transformers with its own cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import DynamicCache

import laguna_ref
from laguna_ref import checkpoint
from tests import tolerances
from tests.peers import compare
from tests.peers.transformers_model import load_transformers, logits
from tests.strategies import random_tensors, small_xs2

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(
    "chunks",
    [(40,), (8, 8, 8, 8, 8), (1, 7, 9, 20, 3), (30, *[1] * 10), (1,) * 40],
    ids=["at once", "by windows", "uneven", "prefill and decode", "token by token"],
)
def test_any_chunking_agrees(chunks: tuple[int, ...], tmp_path: Path) -> None:
    """Window 8: chunks shorter, equal to and longer than what a sliding layer keeps."""
    config = small_xs2("xs2") | {"torch_dtype": "float32"}
    tokens = np.random.default_rng(2).integers(0, config["vocab_size"], sum(chunks))
    checkpoint.write(tmp_path / "model", config, random_tensors(config, seed=2))
    truth = laguna_ref.load(tmp_path / "model", numerics="float64", engine="numpy")(tokens)
    model = laguna_ref.load(tmp_path / "model", numerics="float32", engine="numpy")
    peer = load_transformers(tmp_path / "model")

    ours_cache, their_cache = model.new_cache(), DynamicCache(config=peer.config)
    parts = np.split(tokens, np.cumsum(chunks)[:-1])
    ours = np.concatenate([model(part, cache=ours_cache) for part in parts])
    theirs = np.concatenate([logits(peer, part.tolist(), their_cache) for part in parts])

    scale = compare.scale_of(truth)
    for found, expected in ((ours, truth), (theirs, truth), (ours, theirs)):
        assert compare.error(found, expected, scale) <= tolerances.FLOAT32_ERROR
