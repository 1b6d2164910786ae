"""Cases spread over a dask.distributed cluster on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from laguna_ref.errors import InputError
from laguna_ref.golden import GoldenError, read_golden
from laguna_ref.golden.cluster import run_on_dask
from laguna_ref.golden.golden_file import results_of
from laguna_ref.golden.jobs import ModelSpec, jobs_for, run
from tests.golden.models import case, written

pytest.importorskip("distributed")
dask = pytest.importorskip("dask")
pytestmark = [
    # Of dask's own event loops and sockets, while processes come and go.
    pytest.mark.filterwarnings("default"),
]

CASES = [case(name=f"case-{i}", chunks=(i, 9 - i)) for i in range(1, 5)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=":0", silence_logs=logging.ERROR
    ) as cluster:
        yield cluster.scheduler_address


def test_one_file_a_case_the_same_as_without(tmp_path: Path, address: str) -> None:
    """Two threads a worker: cases that meet in one process wait for each other."""
    spec = ModelSpec(str(written(tmp_path / "model")))
    spread = jobs_for(spec, CASES, tmp_path / "spread")
    done = list(run_on_dask(spread, address=address))
    assert sorted(one.name for one in done) == [one.name for one in CASES]
    assert all(one.computed for one in done)
    for alone in jobs_for(spec, CASES, tmp_path / "alone"):
        run(alone)
        other = read_golden(tmp_path / "spread" / alone.path.name)
        assert results_of(other) == results_of(read_golden(alone.path))
    again = run_on_dask(spread, address=address)
    assert not any(one.computed for one in again)


def test_a_jobs_error_comes_back_in_its_parts(tmp_path: Path, address: str) -> None:
    spec = ModelSpec(str(written(tmp_path / "model")))
    jobs = jobs_for(spec, CASES[:1], tmp_path)
    jobs[0].path.write_bytes(b"rubbish")
    with pytest.raises(GoldenError) as caught:
        list(run_on_dask(jobs, address=address))
    assert caught.value.file == str(jobs[0].path)
    assert str(caught.value).startswith(f"{jobs[0].path}: truncated")


def killed(*_: Any) -> Any:
    os._exit(1)


def test_a_worker_that_dies(tmp_path: Path) -> None:
    spec = ModelSpec(str(written(tmp_path / "model")), engine="numpy")
    jobs = jobs_for(spec, CASES[:1], tmp_path / "out", budget=killed)
    fatal = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    message = "case-1: workers died while they computed it"
    with fatal, pytest.raises(GoldenError, match=message):
        list(run_on_dask(jobs, workers=1))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_cluster_of_its_own(tmp_path: Path) -> None:
    spec = ModelSpec(str(written(tmp_path / "model")), engine="numpy")
    jobs = jobs_for(spec, CASES[:2], tmp_path)
    assert sum(one.computed for one in run_on_dask(jobs, workers=2)) == 2


def test_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        for address in ("tcp://127.0.0.1:9", "nonsense://x"):
            with pytest.raises(InputError, match="no dask scheduler answers"):
                list(run_on_dask([], address=address))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "distributed":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="needs the dask extra"):
        list(run_on_dask([]))
