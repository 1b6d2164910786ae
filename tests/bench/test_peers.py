"""Other implementations in processes of their own; only the last tests start one."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import laguna_ref
from laguna_ref.bench import peers
from laguna_ref.bench.peers import Peer
from laguna_ref.bench.runs import Runs
from laguna_ref.bench.timing import Effort
from laguna_ref.checkpoint import synth, write
from laguna_ref.config import LagunaConfig
from tests.small import quantised, small_config
from tests.strategies import random_tensors, small_xs2

ONCE = Effort(1, 0.0)
TRANSFORMERS, LLAMACPP = peers.PEERS["transformers"], peers.PEERS["llamacpp"]
ANSWERS = {
    "transformers_speed": {
        "seconds": {"grouped_mm": [[2.0], [4.0, 3.0]], "eager": [[1.0], [5.0]]},
        "agreement": {"grouped_mm": 0.99999, "eager": 0.99998},
        "versions": {"transformers": "5", "torch": "2"},
    },
    "llamacpp_speed": {
        "seconds": {"BF16": [[2.0], [3.0]], "Q4_0": [[1.0], [5.0]]},
        "agreement": {"BF16": 0.9999, "Q4_0": 0.99},
        "versions": {"llama-cpp-python": "0.3"},
    },
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
        assert Path(asked["folder"]).is_dir()
        answer = ANSWERS[command[-1].rpartition(".")[2]]
        answer = answer | {key: value for key, value in changes.items() if key in answer}
        code, stderr = changes.get("code", 0), changes.get("stderr", "")
        return subprocess.CompletedProcess(command, code, json.dumps(answer), stderr)

    monkeypatch.setattr(peers.subprocess, "run", run)
    return asked


def test_a_peer_runs_the_same_tokens_on_the_same_weights(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch)
    ours = [runs.decode(1, 1), runs.prefill(9, 1)]
    found, note = peers.measure(TRANSFORMERS, runs, ours, 2, ONCE)
    assert asked["path"] == str(runs.model.checkpoint.path)
    assert (asked["threads"], asked["effort"]) == (2, {"repeats": 1, "seconds": 0.0})
    assert asked["variants"] == ["grouped_mm", "eager"]
    assert [run["decode"] for run in asked["runs"]] == [True, False]
    assert asked["runs"][1]["tokens"] == runs.prompt(9).tolist()
    assert not Path(asked["folder"]).exists()
    assert [(one.what, one.peer, one.timing.best) for one in found] == [
        ("decode", "transformers float32 (grouped_mm)", 2.0),
        ("prefill", "transformers float32 (grouped_mm)", 3.0),
        ("decode", "transformers float32 (eager)", 1.0),
        ("prefill", "transformers float32 (eager)", 5.0),
    ]
    assert found[0].work.flops == ours[0].work.flops
    assert found[0].work.nbytes > ours[0].work.nbytes
    assert "transformers 5, torch 2" in note
    assert "correlate by 0.999990 (grouped_mm), 0.999980 (eager)" in note


def test_each_variant_of_a_peer_reads_its_own_bytes(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch)
    ours = [runs.decode(1, 1), runs.prefill(9, 1)]
    float32 = peers.measure(TRANSFORMERS, runs, ours, 1, ONCE)[0][0]
    bf16, _, q4, _ = peers.measure(LLAMACPP, runs, ours, 1, ONCE)[0]
    assert (bf16.peer, q4.peer) == ("llama.cpp BF16", "llama.cpp Q4_0")
    assert bf16.work.nbytes * 2 == float32.work.nbytes
    assert bf16.work.flops == q4.work.flops == ours[0].work.flops
    # All its weights in 18 bytes for 32 of them would be less: the head takes more.
    assert bf16.work.nbytes * 18 / 64 < q4.work.nbytes < bf16.work.nbytes * 210 / 512


@pytest.mark.parametrize(
    ("peer", "agreement"),
    [
        (TRANSFORMERS, {"grouped_mm": 1.0, "eager": 0.9}),
        (TRANSFORMERS, {"grouped_mm": float("nan"), "eager": 1.0}),
        (LLAMACPP, {"BF16": 0.99, "Q4_0": 0.99}),
        (LLAMACPP, {"BF16": 1.0, "Q4_0": 0.4}),
    ],
)
def test_another_function_is_refused(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, peer: Peer, agreement: dict[str, float]
) -> None:
    answering(monkeypatch, agreement=agreement)
    with pytest.raises(peers.PeerError, match="another function"):
        peers.measure(peer, runs, [], 1, ONCE)


def test_a_failure_is_one_line(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, code=1, stderr="Traceback\n  line\nMemoryError: no room\n")
    with pytest.raises(peers.PeerError, match="Transformers failed; found MemoryError: no room"):
        peers.measure(TRANSFORMERS, runs, [], 1, ONCE)


def test_room_is_asked_for_before_it_is_taken(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peers.available_bytes() > 0
    monkeypatch.setattr(peers, "available_bytes", lambda: 1 << 40)
    assert TRANSFORMERS.missing_memory(runs) == 0
    monkeypatch.setattr(peers, "available_bytes", lambda: 0)
    assert TRANSFORMERS.missing_memory(runs) > LLAMACPP.missing_memory(runs) > 2 * 1000
    full = SimpleNamespace(free=0)
    monkeypatch.setattr(peers.shutil, "disk_usage", lambda _: full)
    assert TRANSFORMERS.missing_disk(runs) == 0
    assert LLAMACPP.missing_disk(runs) > LLAMACPP.missing_memory(runs)


def test_a_peer_is_installed_when_all_its_packages_are() -> None:
    assert replace(LLAMACPP, packages=("json", "click")).installed()
    assert not replace(LLAMACPP, packages=("json", "no_such_package")).installed()


@pytest.mark.peer
@pytest.mark.skipif(not TRANSFORMERS.installed(), reason="needs the peers extra")
def test_transformers_computes_the_same_function(runs: Runs) -> None:
    ours = [runs.decode(1, 1), runs.prefill(9, 1)]
    found, note = peers.measure(TRANSFORMERS, runs, ours, 1, ONCE)
    assert [one.what for one in found] == ["decode", "prefill"] * 2
    assert "correlate by 1.0000" in note


@pytest.mark.peer
@pytest.mark.skipif(not LLAMACPP.installed(), reason="needs the llamacpp extra")
def test_llamacpp_computes_the_same_function(tmp_path: Path) -> None:
    config = LagunaConfig.from_dict(small_xs2())
    write(tmp_path, config, random_tensors(small_xs2(), seed=0))
    runs = Runs(laguna_ref.load(tmp_path, engine="numpy"), ONCE)
    bf16 = replace(LLAMACPP, variants={"BF16": LLAMACPP.variants["BF16"]})
    found, note = peers.measure(bf16, runs, [runs.decode(1, 1), runs.prefill(9, 1)], 1, ONCE)
    assert [one.what for one in found] == ["decode", "prefill"]
    assert "correlate by 0.99" in note or "correlate by 1.0" in note
