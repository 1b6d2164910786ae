"""laguna-ref bench; what it measures is set, how fast this machine is does not matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from laguna_ref.bench import machine, others, peers, slices
from laguna_ref.bench.machine import Machine
from laguna_ref.bench.runs import Result
from laguna_ref.bench.sgemm import HELD_BACK_BY
from laguna_ref.bench.work import Rates
from laguna_ref.cli import bench
from laguna_ref.config import LagunaConfig
from tests.cli.conftest import CONFIG, Run

RESULT_KEYS = {
    "what", "tokens", "context", "batch", "tokens_per_s", "bytes_per_token", "flops_per_token",
    "share_of_limit", "peer",
}  # fmt: skip


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores of known speed, and each run made as rarely as possible."""
    for name in HELD_BACK_BY:
        monkeypatch.delenv(name, raising=False)
    rates = {1: Rates(10.0, 100.0), 2: Rates(18.0, 180.0)}

    def measure(counts: list[int], *, quick: bool) -> Machine:
        return Machine("a CPU", "a target", max(counts), {n: rates[n] for n in counts})

    monkeypatch.setattr(machine, "measure", measure)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(others, "usage", lambda: None)
    monkeypatch.setattr(bench, "QUICK_EFFORT", (1, 0.0))
    monkeypatch.setattr(bench, "EFFORT", (1, 0.0))


def summary(results: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(r["what"], r["tokens"], r["context"], r["batch"], r["threads"]) for r in results]


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_json_has_the_stable_keys(run_json: Any, bare: Path, engine: str) -> None:
    found = run_json("bench", "--quick", "--model", bare, "--engine", engine, "--contexts", "1,5")
    assert found["machine"]["cpu"] == "a CPU"
    assert (found["machine"]["threads"], found["machine"]["read_gb_s"]) == (2, 18.0)
    assert all(set(result) >= RESULT_KEYS for result in found["results"])
    assert summary(found["results"]) == [
        ("prefill", 64, 64, 1, 2),
        ("prefill", 512, 512, 1, 1),
        ("prefill", 512, 512, 1, 2),
        ("decode", 1, 1, 1, 1),
        ("decode", 1, 1, 1, 2),
        ("decode", 1, 5, 1, 2),
    ]
    assert (found["model"]["engine"], found["model"]["layers"]) == (engine, 3)


def test_sizes_are_those_given(run_json: Any, bare: Path) -> None:
    found = run_json(
        "bench", "--model", bare, "--threads", 1, "--contexts", "2", "--prompts", "3", "--batches",
        "1,3", "--no-peers", "--numerics", "float64", "--kv-cache", "float",
    )  # fmt: skip
    assert summary(found["results"]) == [
        ("prefill", 3, 3, 1, 1), ("decode", 1, 2, 1, 1), ("decode", 1, 2, 3, 1),
    ]  # fmt: skip
    assert list(found["machine"]["by_threads"]) == ["1"]
    assert found["notes"] == []
    assert found["model"]["numerics"] == "float64"


def test_contexts_that_the_model_has_no_positions_for_are_left_out(
    run_json: Any, bare: Path
) -> None:
    found = run_json("bench", "--quick", "--model", bare, "--engine", "numpy")["results"]
    assert {result["context"] for result in found if result["what"] == "decode"} == {1}


def test_tables(run: Run, bare: Path) -> None:
    result = run("bench", "--quick", "--model", bare, "--operations", "--engine", "numpy")
    assert "a CPU, compiled for a target; 3 layers, float32, engine numpy" in result.stdout
    assert "18.0 GB/s" in result.stdout
    assert "prefill 512" in result.stdout
    assert "prefill 64 at 64, 2 threads" in result.stdout
    assert "decode at context 1, batch 1, 2 threads" in result.stderr


def test_a_slice_is_made_up_and_kept_where_that_is_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real widths take seconds to write, so a small config stands in for the preset."""
    asked = []

    def slice_config(*arguments: Any) -> LagunaConfig:
        asked.append(arguments)
        return LagunaConfig.from_dict(CONFIG)

    monkeypatch.setattr(slices, "slice_config", slice_config)
    arguments = ("bench", "--quick", "--engine", "numpy", "--prompts", "2", "--contexts", "1")
    run(*arguments)
    kept = ("--folder", tmp_path / "kept")
    assert "made up" in run(*arguments, *kept, "--layer-ids", "0,31").stderr
    assert "reused" in run(*arguments, *kept, "--preset", "xs2", "--layers", 2).stderr
    assert asked == [("xs2-int4", 4, None), ("xs2-int4", None, [0, 31]), ("xs2", 2, None)]
    assert (tmp_path / "kept" / "model.safetensors").exists()


class FakePeer:
    """A peer that is there, or not, and notes what it is asked to run."""

    def __init__(self, title: str, *, there: bool = True) -> None:
        self.title, self.extra, self.there = title, f"the {title} extra", there
        self.given: list[Result] = []
        self.memory = self.disk = 0

    def installed(self) -> bool:
        return self.there

    def missing_memory(self, _: Any) -> int:
        return self.memory

    def missing_disk(self, _: Any) -> int:
        return self.disk


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> tuple[FakePeer, FakePeer]:
    def measure(peer: Any, _: Any, ours: list[Result], *rest: Any) -> tuple[list[Result], str]:
        peer.given.extend(ours)
        return [replace(one, peer=peer.title) for one in ours], f"{peer.title} ran"

    first, second = FakePeer("first"), FakePeer("second")
    monkeypatch.setattr(peers, "PEERS", {"transformers": first, "llamacpp": second})
    monkeypatch.setattr(peers, "measure", measure)
    return first, second


@pytest.fixture
def short(bare: Path) -> tuple[Any, ...]:
    return (
        "bench", "--model", bare, "--engine", "numpy", "--prompts", "512", "--contexts", "1",
        "--batches", "1",
    )  # fmt: skip


def test_peers_join_the_results(
    run_json: Any, short: tuple[Any, ...], two: tuple[FakePeer, FakePeer]
) -> None:
    found = run_json(*short)
    assert found["notes"] == ["first ran", "second ran"]
    for peer in two:
        assert [(one.what, one.tokens, one.threads) for one in peer.given] == [
            ("prefill", 512, 2), ("decode", 1, 2),
        ]  # fmt: skip
    assert [one["peer"] for one in found["results"][-4:]] == ["first"] * 2 + ["second"] * 2
    assert run_json(*short, "--quick")["notes"] == []
    assert run_json(*short, "--no-peers")["notes"] == []
    assert run_json(*short, "--quick", "--peers")["notes"] == ["first ran", "second ran"]


def test_one_peer_is_asked_for_by_name(
    run: Run, run_json: Any, short: tuple[Any, ...], two: tuple[FakePeer, FakePeer]
) -> None:
    assert run_json(*short, "--quick", "--peer", "llamacpp")["notes"] == ["second ran"]
    assert not two[0].given
    two[1].there = False
    assert "second is not installed" in run(*short, "--peer", "llamacpp", code=2).stderr
    assert run_json(*short, "--peer", "transformers")["notes"] == ["first ran"]


def test_what_a_peer_has_no_room_for_is_left_out(
    run_json: Any, short: tuple[Any, ...], two: tuple[FakePeer, FakePeer]
) -> None:
    two[0].memory, two[1].disk = 10**9, 2 * 10**9
    assert run_json(*short)["notes"] == [
        "first was not run: 1.00 GB of memory too little",
        "second was not run: 2.00 GB of disk too little",
    ]


def test_a_missing_peer_is_an_error_only_if_there_should_be_one(
    run: Run, run_json: Any, short: tuple[Any, ...], two: tuple[FakePeer, FakePeer]
) -> None:
    two[1].there = False
    expected = ["first ran", "second is not installed: it was not run"]
    assert run_json(*short, "--peers")["notes"] == expected
    two[0].there = False
    assert len(run_json(*short)["notes"]) == 2
    assert "the first extra" in run(*short, "--peers", code=2).stderr


def test_the_names_of_peers_are_those_of_the_option() -> None:
    assert tuple(peers.PEERS) == bench.PEER_NAMES


@pytest.mark.parametrize(("engine", "notes"), [("numpy", 1), ("numba", 0)])
def test_an_openblas_that_is_held_back_is_noted(
    run_json: Any, bare: Path, monkeypatch: pytest.MonkeyPatch, engine: str, notes: int
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    found = run_json(
        "bench", "--quick", "--model", bare, "--engine", engine, "--prompts", "2", "--contexts", "1"
    )
    assert len(found["notes"]) == notes
    assert all("OPENBLAS_CORETYPE=Haswell" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "2", "--layer-ids", "0"], "give --layers or --layer-ids, not both"),
        (["--model", "x", "--preset", "xs2"], "give --model, or a --preset"),
        (["--model", "x", "--folder", "y"], "give --model, or a --preset"),
        (["--model", "/nowhere"], "/nowhere: no such folder"),
        (["--no-peers", "--peer", "llamacpp"], "give --peer or --no-peers, not both"),
        (["--preset", "xs9"], "no such preset"),
        (["--preset", "xs2", "--layers", "41"], "expected 0 to 39"),
    ],
)
def test_bad_input(run: Run, arguments: list[str], message: str) -> None:
    assert message in run("bench", *arguments, code=2).stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--contexts", "0"), ("--prompts", "641"), ("--batches", "1,0")]
)
def test_bad_sizes(run: Run, bare: Path, option: str, value: str) -> None:
    result = run("bench", "--quick", "--model", bare, "--engine", "numpy", option, value, code=2)
    assert "no such size" in result.stderr
