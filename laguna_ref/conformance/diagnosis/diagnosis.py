"""What a diagnosis comes to: a verdict and ranked causes; JSON and a table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

NAMED, UNKNOWN, CONFORMING, INCONCLUSIVE = "named", "unknown", "conforming", "inconclusive"
EXIT_CODES = {CONFORMING: 0, NAMED: 1, UNKNOWN: 1, INCONCLUSIVE: 3}


@dataclass(frozen=True)
class Cause:
    """One hypothesis and how well it does."""

    fault: str
    explained: float
    """Share of the misfit beyond noise that goes when the fault is planted, 0 to 1."""
    rank: int
    """From 1; causes of one rank cannot be told apart by what was observed."""
    point: str | None
    """Where it first shows."""
    description: str
    parameters: dict[str, Any]
    """Settings of the model that it changes: the value used."""
    configured: dict[str, Any]
    """What the checkpoint says instead."""
    references: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "fault": self.fault,
            "explained": round(self.explained, 4),
            "rank": self.rank,
            "parameters": self.parameters,
            "configured": self.configured,
            "point": self.point,
            "description": self.description,
            "references": list(self.references),
        }


@dataclass
class Diagnosis:
    """The outcome."""

    verdict: str
    reason: str
    backend: dict[str, Any] = field(default_factory=dict)
    looked_at: str | None = None
    """``trace``: operation by operation; ``logits``."""
    misfit: float = 0.0
    """Of the oracle as it is."""
    noise: float = 0.0
    """Greatest misfit of a legal run."""
    causes: list[Cause] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Prompts that the backend cannot be asked, and why."""
    failed: list[str] = field(default_factory=list)
    """Prompts that it did not answer, or not wholly, and why."""

    def with_prompts(self, left_out: list[str], failed: list[str]) -> Diagnosis:
        """The same, told what was not looked at: a failed prompt keeps it from conforming."""
        result = replace(self, left_out=left_out, failed=failed)
        if failed and self.verdict == CONFORMING:
            return replace(result, verdict=INCONCLUSIVE, reason=failed[0])
        return result

    @property
    def exit_code(self) -> int:
        """0 conforming, 1 named or unknown, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, described in docs/diagnose.md."""
        return {
            "schema": 1,
            "backend": self.backend,
            "verdict": self.verdict,
            "reason": self.reason,
            "looked_at": self.looked_at,
            "misfit": self.misfit,
            "noise": self.noise,
            "causes": [cause.to_json() for cause in self.causes],
            "left_out": self.left_out,
            "failed": self.failed,
        }

    def print(self, console: Console) -> None:
        """For people: the verdict, then the causes, best first."""
        from rich.table import Table

        console.print(f"[bold]{self.verdict}[/bold]: {self.reason}")
        if not self.causes:
            return
        table = Table(show_edge=False, pad_edge=False)
        for head in ("rank", "explains", "fault", "first shows at", "what"):
            table.add_column(head, overflow="fold")
        for cause in self.causes:
            what = [cause.description]
            what += [
                f"{key} {value:.6g} where {cause.configured[key]:.6g} is configured"
                if isinstance(value, float) and isinstance(cause.configured[key], float)
                else f"{key} {value} where {cause.configured[key]} is configured"
                for key, value in cause.parameters.items()
            ]
            what += cause.references
            table.add_row(
                str(cause.rank), f"{cause.explained:.0%}", cause.fault, cause.point or "",
                "\n".join(what),
            )  # fmt: skip
        console.print(table)
