"""The documented way to a dump of Transformers, as it stands in the docs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import laguna_ref
from laguna_ref.golden import read_dump, read_golden
from laguna_ref.golden.golden_file import SUFFIX
from laguna_ref.golden.verify import COMMITTED_GOLDENS
from laguna_ref.load import EMBEDDED
from laguna_ref.trace import trace_points
from tests import tolerances
from tests.meta.sources import ROOT
from tests.peers.dequantised import write_dequantised

pytestmark = pytest.mark.peer

SCRIPT = ROOT / "docs" / "examples" / "dump_transformers.py"
INSIDE = ("q_rope", "k_rope", "k_cached", "v_cached", "attention", "gate")
"""Of attention, what no module returns."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dequantised(EMBEDDED, tmp_path_factory.mktemp("dump") / "dense", exact=True)


@pytest.mark.parametrize("name", ["short-float", "window-plus-1-float"])
def test_a_dump_of_transformers(dense: Path, tmp_path: Path, name: str) -> None:
    path = COMMITTED_GOLDENS / f"{name}{SUFFIX}"
    target = tmp_path / "dump.safetensors"
    subprocess.run([sys.executable, str(SCRIPT), str(dense), str(path), str(target)], check=True)
    golden, dump = read_golden(path), read_dump(target)
    assert dump.tokens.tolist() == list(golden.case.tokens)
    assert dump.positions.tolist() == list(golden.positions)
    assert set(dump.points) == {
        point
        for point in trace_points(laguna_ref.load().config)
        if ".topk_" not in point and not point.endswith(tuple(f"self_attn.{x}" for x in INSIDE))
    }
    for point, expected in golden.points.items():
        error = tolerances.FLOAT32_INNER_ERROR
        tolerances.assert_within(dump.points[point], expected, error, point)
    logits = dump.points["lm_head"][list(golden.logits.at)]
    assert golden.logits.full is not None
    tolerances.assert_within(logits, golden.logits.full, tolerances.FLOAT32_ERROR, "lm_head")
    assert dump.routing is not None
    assert set(dump.routing) == set(golden.routing)
    for layer, chosen in golden.routing.items():
        assert np.array_equal(np.sort(dump.routing[layer].ids), np.sort(chosen.ids)), layer
