"""Spreading cases over a dask.distributed cluster: a task a case, a file a task.

Workers memory-map the checkpoint, so those of one machine share its pages; they write into the
folder themselves, which must be one that all of them see. Needs the ``dask`` extra.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from laguna_ref.errors import InputError
from laguna_ref.golden.errors import GoldenError
from laguna_ref.golden.jobs import Done, Job, run


def run_on_dask(
    jobs: Sequence[Job], *, address: str | None = None, workers: int = 2
) -> Iterator[Done]:
    """What came of each job, in the order in which they end.

    address: of a scheduler, ``tcp://host:8786``; None starts a cluster on this machine of so
        many ``workers``, which share its cores.

    Raises InputError without the extra or without a scheduler at the address, GoldenError for
    a case whose workers die, and whatever a job raises.
    """
    try:
        from distributed import Client, KilledWorker, LocalCluster, as_completed
    except ImportError as problem:
        raise InputError(
            "needs the dask extra: pip install 'laguna-ref[dask]'", key="scheduler"
        ) from problem
    with ExitStack() as stack:
        if address is None:
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=min(workers, len(jobs)) or 1,
                    threads_per_worker=1,
                    dashboard_address=":0",
                    silence_logs=logging.ERROR,
                )
            )
            jobs = [_sharing_cores(job, workers) for job in jobs]
        try:
            client = stack.enter_context(Client(cluster if address is None else address))
        except (OSError, ValueError) as problem:
            raise InputError(
                f"no dask scheduler answers ({problem})", key="scheduler", found=address
            ) from problem
        # Never taken for a result that the scheduler remembers: files may have gone since.
        futures = [client.submit(run, job, pure=False) for job in jobs]
        for future in as_completed(futures):
            try:
                yield future.result()
            except KilledWorker as problem:
                raise GoldenError(
                    "workers died while they computed it (out of memory?)",
                    key=jobs[futures.index(future)].case.name,
                ) from problem


def _sharing_cores(job: Job, workers: int) -> Job:
    if job.spec.threads is not None:
        return job
    threads = max(1, (os.cpu_count() or 1) // workers)
    return replace(job, spec=replace(job.spec, threads=threads))
