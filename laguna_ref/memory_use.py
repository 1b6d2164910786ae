"""What a process has cost in memory: pages it waited for, bytes from disk, memory of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")


@dataclass(frozen=True)
class MemoryUse:
    """Counted since the process began; what the system does not say is 0."""

    major_faults: int
    """Pages that a thread touched and had to wait for while they came from disk."""
    read_bytes: int
    """Bytes that came from disks for this process, read ahead or waited for."""
    anonymous_bytes: int
    """Memory of its own now: everything but mapped files."""

    def since(self, before: MemoryUse) -> MemoryUse:
        """Faults and bytes read between two moments; its own memory as it is now."""
        return MemoryUse(
            self.major_faults - before.major_faults,
            self.read_bytes - before.read_bytes,
            self.anonymous_bytes,
        )

    def to_json(self) -> dict[str, int]:
        """The three figures by name."""
        return {
            "major_faults": self.major_faults,
            "read_bytes": self.read_bytes,
            "anonymous_bytes": self.anonymous_bytes,
        }


def memory_use() -> MemoryUse:
    """The figures of this process now; bytes are known on Linux only."""
    return MemoryUse(
        major_faults(), _number("io", "read_bytes"), _number("status", "RssAnon") * 1024
    )


def major_faults() -> int:
    """Pages this process has waited for so far; half a microsecond."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _number(file: str, name: str) -> int:
    try:
        text = (PROC / file).read_text("utf-8")
    except OSError:
        return 0
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return 0
