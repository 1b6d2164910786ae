"""Repeating a call until its least time is known."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from laguna_ref.memory_use import MemoryUse, memory_use

NO_MEMORY = MemoryUse(0, 0, 0)
ENOUGH = 1000
"""Repeats after which no more are made, however short a run is."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least ``repeats`` times and for ``seconds``."""

    repeats: int
    seconds: float


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat of one run."""

    seconds: tuple[float, ...]
    memory: MemoryUse = NO_MEMORY
    """What all repeats together waited for and read from disk; should be nothing."""

    @property
    def best(self) -> float:
        """The least: what other programs on the machine add is never negative."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Half of the repeats took no longer."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Least and median seconds, and how often it was run."""
        return {"min": self.best, "median": self.median, "repeats": len(self.seconds)}


def timed(
    run: Callable[[], object],
    effort: Effort,
    *,
    after: Callable[[], object] = lambda: None,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Runs once to warm up, then as often as ``effort`` asks; ``after`` each run is not timed."""
    if warm_up:
        run()
        after()
    seconds: list[float] = []
    before = memory_use()
    while len(seconds) < effort.repeats or (
        sum(seconds) < effort.seconds and len(seconds) < ENOUGH
    ):
        start = clock()
        run()
        seconds.append(clock() - start)
        after()
    return Timing(tuple(seconds), memory_use().since(before))
