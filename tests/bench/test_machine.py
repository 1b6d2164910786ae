"""What is measured of a machine, apart from how fast it is."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest

from laguna_ref.bench import machine, sgemm
from laguna_ref.bench.machine import Machine, faster
from laguna_ref.bench.read_kernels import KERNELS, PIECE
from laguna_ref.bench.timing import Effort
from laguna_ref.bench.work import Rates


def a_machine(*rates: tuple[float, float]) -> Machine:
    by_threads = {threads: Rates(*pair) for threads, pair in enumerate(rates, 1)}
    return Machine("a CPU", "a target", len(rates), by_threads)


@pytest.mark.parametrize("kernel", KERNELS, ids=["one", "four", "pieces"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_kernels_read_every_word_once(kernel: Any, parts: int) -> None:
    words = np.random.default_rng(0).integers(-9, 9, 12 * PIECE)
    sums = np.zeros(parts, dtype=np.int64)
    kernel(words, sums)
    assert sums.sum() == words.sum()
    assert np.count_nonzero(sums) == parts


def test_bandwidth_is_that_of_the_whole_array() -> None:
    words = np.ones(1 << 16, dtype=np.int64)
    assert machine.read_bandwidth(words, 1, Effort(1, 0.0)) > 0


def test_sgemm_runs_without_what_holds_openblas_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sgemm.HELD_BACK_BY:
        monkeypatch.setenv(name, "Haswell")
    asked: dict[str, Any] = {}

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        asked.update(env)
        assert command[-2:] == ["64", "3"]
        return subprocess.CompletedProcess(command, 0, "12.5\n", "")

    monkeypatch.setattr(sgemm.subprocess, "run", run)
    assert sgemm.rate_in_process(64, 3, 2) == 12.5
    assert not set(sgemm.HELD_BACK_BY) & set(asked)
    assert {asked[name] for name in sgemm.THREAD_VARIABLES} == {"2"}


def test_the_script_runs_by_itself() -> None:
    assert sgemm.rate_in_process(16, 1, 1) > 0


def test_the_better_of_two_measurements() -> None:
    one, other = a_machine((10, 300), (18, 500)), a_machine((12, 200), (17, 600))
    assert faster(one, other).rates == {1: Rates(12, 300), 2: Rates(18, 600)}


def test_json_has_the_stable_keys() -> None:
    found = a_machine((10, 300), (18, 500)).to_json()
    assert found["cpu"] == "a CPU"
    assert (found["threads"], found["read_gb_s"], found["sgemm_gflop_s"]) == (2, 18, 500)
    assert found["by_threads"]["1"] == {"read_gb_s": 10, "sgemm_gflop_s": 300}


def test_this_machine_has_names_and_cores() -> None:
    assert machine.cpu_name()
    assert machine.target_name()
    assert machine.cores() >= 1


def test_every_number_of_threads_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BUFFER_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "read_bandwidth", lambda words, threads, effort: 10.0 * threads)
    monkeypatch.setattr(machine, "rate_in_process", lambda *asked: 100.0 * asked[-1])
    found = machine.measure([2, 1, 2])
    assert (found.threads, list(found.rates)) == (2, [1, 2])
    assert found.rates[2] == Rates(20, 200)
