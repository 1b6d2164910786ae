"""Another implementation in a process of its own; only the last test starts one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import laguna_ref
from laguna_ref.bench import peers
from laguna_ref.bench.runs import Runs
from laguna_ref.bench.timing import Effort
from laguna_ref.checkpoint import synth, write
from laguna_ref.config import LagunaConfig
from tests.small import quantised, small_config

ONCE = Effort(1, 0.0)
ANSWER = {
    "seconds": {"grouped_mm": [[2.0], [4.0, 3.0]], "eager": [[1.0], [5.0]]},
    "agreement": 0.99999,
    "versions": {"transformers": "5", "torch": "2"},
}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    config = LagunaConfig.from_dict(quantised(small_config()))
    write(tmp_path / "model", config, synth(config, seed=0))
    return Runs(laguna_ref.load(tmp_path / "model", engine="numpy"), ONCE)


def answering(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Puts an answer in the place of the other process; returns what it was asked."""
    asked: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> Any:
        asked.update(json.loads(options["input"]))
        code = changes.get("code", 0)
        text = json.dumps(ANSWER | {k: v for k, v in changes.items() if k in ANSWER})
        return subprocess.CompletedProcess(command, code, text, changes.get("stderr", ""))

    monkeypatch.setattr(peers.subprocess, "run", run)
    return asked


def test_a_peer_runs_the_same_tokens_on_the_same_weights(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch)
    ours = [runs.decode(1, 1), runs.prefill(9, 1)]
    found, note = peers.transformers(runs, ours, 2, ONCE)
    assert asked["path"] == str(runs.model.checkpoint.path)
    assert (asked["threads"], asked["effort"]) == (2, {"repeats": 1, "seconds": 0.0})
    assert [run["decode"] for run in asked["runs"]] == [True, False]
    assert asked["runs"][1]["tokens"] == runs.prompt(9).tolist()
    assert [(one.what, one.peer, one.timing.best) for one in found] == [
        ("decode", "transformers float32 (grouped_mm)", 2.0),
        ("prefill", "transformers float32 (grouped_mm)", 3.0),
        ("decode", "transformers float32 (eager)", 1.0),
        ("prefill", "transformers float32 (eager)", 5.0),
    ]
    assert found[0].work.flops == ours[0].work.flops
    assert found[0].work.nbytes > ours[0].work.nbytes
    assert "transformers 5, torch 2" in note


@pytest.mark.parametrize("agreement", [0.9, float("nan")])
def test_another_function_is_refused(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, agreement: float
) -> None:
    answering(monkeypatch, agreement=agreement)
    with pytest.raises(peers.PeerError, match="another function"):
        peers.transformers(runs, [], 1, ONCE)


def test_a_failure_is_one_line(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, code=1, stderr="Traceback\n  line\nMemoryError: no room\n")
    with pytest.raises(peers.PeerError, match="Transformers failed; found MemoryError: no room"):
        peers.transformers(runs, [], 1, ONCE)


def test_memory_is_asked_for_before_it_is_taken(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peers.available_bytes() > 0
    monkeypatch.setattr(peers, "available_bytes", lambda: 1 << 40)
    assert peers.missing_bytes(runs) == 0
    monkeypatch.setattr(peers, "available_bytes", lambda: 0)
    assert peers.missing_bytes(runs) > 4 * 1000


@pytest.mark.peer
@pytest.mark.skipif(not peers.installed(), reason="needs the peers extra")
def test_transformers_computes_the_same_function(runs: Runs) -> None:
    ours = [runs.decode(1, 1), runs.prefill(9, 1)]
    found, note = peers.transformers(runs, ours, 1, ONCE)
    assert [one.what for one in found] == ["decode", "prefill"] * 2
    assert "correlate by 1.0000" in note
