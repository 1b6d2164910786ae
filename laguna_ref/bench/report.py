"""Results as the JSON of ``bench --json`` and as tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from laguna_ref.bench.machine import Machine
from laguna_ref.bench.runs import Result
from laguna_ref.bench.timing import Timing

COLUMNS = (
    "~run", ">context", ">batch", ">threads", ">tokens/s", ">best ms", ">median", ">MB/token",
    ">MFLOP/token", "bound by", ">share", ">attention's", ">from disk",
)  # fmt: skip
"""Share: of the limit; attention's: the same of attention alone. Times are of a whole run.

From disk: MB of one run, the mean of all repeats; with any, the share is one of the disk's.
"""
LEAST_MB = 0.05
SMALLEST_SHARE = 0.01
"""Operations that take less of a run than this are added up in the table."""


def to_json(
    machine: Machine, results: Iterable[Result], model: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    """The object that ``bench --json`` prints; its keys stay, more may be added."""
    return {
        "schema": 1,
        "machine": machine.to_json(),
        "model": model,
        "results": [result.to_json(machine.rates[result.threads]) for result in results],
        "notes": notes,
    }


def machine_rows(machine: Machine) -> list[tuple[str, ...]]:
    """Threads, bandwidth and matrix rate."""
    return [
        (str(threads), f"{rates.read_gb_s:.1f} GB/s", f"{rates.sgemm_gflop_s:.0f} GFLOP/s")
        for threads, rates in sorted(machine.rates.items())
    ]


def result_rows(machine: Machine, results: Iterable[Result]) -> list[tuple[str, ...]]:
    """A row for each run, in the order of ``COLUMNS``."""
    return [_row(result, machine) for result in results]


def _row(result: Result, machine: Machine) -> tuple[str, ...]:
    rates = machine.rates[result.threads]
    tokens = result.tokens * result.batch
    attention = result.attention_share(rates)
    return (
        f"{result.what} {result.tokens}" + (f", {result.peer}" if result.peer else ""),
        str(result.context), str(result.batch), str(result.threads),
        f"{result.tokens_per_s:.2f}", f"{result.timing.best * 1e3:.1f}",
        f"{result.timing.median * 1e3:.1f}", f"{result.work.nbytes / tokens / 1e6:.1f}",
        f"{result.work.flops / tokens / 1e6:.0f}", result.work.bound_by(rates),
        f"{result.share_of_limit(rates):.2f}", "" if attention is None else f"{attention:.2f}",
        _from_disk(result.timing),
    )  # fmt: skip


def _from_disk(timing: Timing) -> str:
    read = timing.memory.read_bytes / len(timing.seconds) / 1e6
    return f"{read:.1f}" if read >= LEAST_MB else ""


def operation_rows(result: Result) -> list[tuple[str, ...]]:
    """Where the time of one run went, the smallest parts added up."""
    total = sum(result.operations.values())
    large = {n: s for n, s in result.operations.items() if s >= SMALLEST_SHARE * total}
    rest = total - sum(large.values())
    if rest > 0:
        large["everything below 1 %"] = rest
    return [(n, f"{s * 1e3:.2f}", f"{100 * s / total:.1f} %") for n, s in large.items()]
