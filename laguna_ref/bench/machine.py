"""The two limits of a machine: bytes read per second, float32 operations per second."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.bench.sgemm import rate_in_process
from laguna_ref.bench.timing import Effort, timed
from laguna_ref.bench.work import Rates
from laguna_ref.numerics import Array

BUFFER_BYTES = 1 << 30
"""What is read to measure bandwidth: many times any last-level cache of a desktop or a node."""
SGEMM_SIZE = 4096
QUICK_SGEMM_SIZE = 2048


@dataclass(frozen=True)
class Machine:
    """What it is, and what it can do with each number of threads that was measured."""

    cpu: str
    target: str
    """LLVM's name for it, which is what kernels are compiled for."""
    threads: int
    rates: dict[int, Rates]

    def to_json(self) -> dict[str, Any]:
        """The stable keys are those of all threads together."""
        best = self.rates[self.threads]
        return {
            "cpu": self.cpu,
            "target": self.target,
            "threads": self.threads,
            **best._asdict(),
            "by_threads": {str(n): rates._asdict() for n, rates in sorted(self.rates.items())},
        }


def measure(thread_counts: Iterable[int], *, quick: bool = False) -> Machine:
    """The machine, measured with each of these numbers of threads."""
    words = np.empty(BUFFER_BYTES // (4 if quick else 1) // 8, dtype=np.int64)
    words.fill(1)  # pages of zeros that were never written are all the same page
    size, repeats = (QUICK_SGEMM_SIZE, 3) if quick else (SGEMM_SIZE, 5)
    rates = {
        threads: Rates(
            read_bandwidth(words, threads, Effort(repeats, 0.5)),
            rate_in_process(size, repeats, threads),
        )
        for threads in sorted(set(thread_counts))
    }
    return Machine(cpu_name(), target_name(), max(rates), rates)


def faster(one: Machine, other: Machine) -> Machine:
    """The better figures of two measurements of the same machine."""
    rates = {
        threads: Rates(*map(max, one.rates[threads], other.rates[threads])) for threads in one.rates
    }
    return Machine(one.cpu, one.target, one.threads, rates)


def read_bandwidth(words: Array, threads: int, effort: Effort) -> float:
    """GB/s of the best of several ways to read an int64 array once with all threads."""
    import numba

    from laguna_ref.bench.read_kernels import KERNELS

    parts = np.zeros(threads, dtype=np.int64)
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        best = min(timed(partial(kernel, words, parts), effort).best for kernel in KERNELS)
    finally:
        numba.set_num_threads(before)
    with ThreadPoolExecutor(threads) as pool:
        halves = np.array_split(words, threads)
        best = min(best, timed(lambda: list(pool.map(np.sum, halves)), effort).best)
    return words.nbytes / best / 1e9


def cpu_name() -> str:
    """The CPU's model as the operating system calls it."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = {}
    for line in text.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        found[name.strip()] = value.strip()
    name = found.get("model name") or platform.machine()
    numbers = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def target_name() -> str:
    """What LLVM takes this CPU for."""
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


def cores() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
