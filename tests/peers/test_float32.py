"""Float32 and float64 logits, and every trace point, against Transformers in float32.

``LAGUNA_PEER_CONFIGS=200 pytest tests/peers/test_float32.py`` compares on 200 drawn configs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given

from laguna_ref import checkpoint
from tests.peers import compare
from tests.peers.settings import PEER_CONFIGS, draw
from tests.peers.transformers_model import load_transformers, trace
from tests.strategies import Example, examples

pytestmark = pytest.mark.peer


def test_logits_and_every_trace_point_agree(figures: dict[str, str]) -> None:
    tally = compare.Tally()

    @draw(PEER_CONFIGS)
    @given(examples())
    def agree(example: Example) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.write(folder, example.config, example.tensors())
            compare_runs(Path(folder), example, tally)

    agree()
    tally.report("float32", figures)


def compare_runs(folder: Path, example: Example, tally: compare.Tally) -> None:
    """Three runs of one checkpoint: ours in float64 and float32, theirs in float32."""
    model, truth = compare.run(folder, example.tokens, numerics="float64")
    _, ours = compare.run(folder, example.tokens, numerics="float32")
    theirs = trace(load_transformers(folder), example.tokens)
    compare.float32_runs(model, truth, ours, theirs, tally)
