"""How busy other programs keep the machine while it is measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
IDLE_COLUMNS = (3, 4)
"""Of the line ``cpu`` of /proc/stat: idle, and waiting for a disk."""
GUEST_COLUMNS = 8
"""What comes from here on is already counted as user time."""
NOTED = 0.05


@dataclass(frozen=True)
class Usage:
    """Seconds of CPU time since the start: of everything, and of this process and its children."""

    everything: float
    own: float
    at: float

    def others_since(self, before: Usage, cpus: int) -> float:
        """The share of all CPU time between two moments that other programs took."""
        spent = (self.everything - before.everything) - (self.own - before.own)
        available = (self.at - before.at) * cpus
        return min(1.0, max(0.0, spent / available)) if available > 0 else 0.0


def usage() -> Usage | None:
    """The usage now; None where the system does not say."""
    try:
        first = STAT.read_text("utf-8").splitlines()[0].split()
    except OSError:
        return None
    ticks = [int(value) for value in first[1 : 1 + GUEST_COLUMNS]]
    busy = sum(value for column, value in enumerate(ticks) if column not in IDLE_COLUMNS)
    own = os.times()
    return Usage(busy / os.sysconf("SC_CLK_TCK"), sum(own[:4]), time.monotonic())


def note(before: Usage | None) -> list[str]:
    """What to say of the time since ``before``; nothing if the machine was left alone."""
    now = usage()
    if before is None or now is None:
        return []
    share = now.others_since(before, os.cpu_count() or 1)
    if share < NOTED:
        return []
    return [f"other programs took {share:.0%} of the CPU time meanwhile: figures are too low"]
