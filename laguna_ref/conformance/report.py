"""What a judgement comes to: verdict, first divergence, all comparisons; JSON and a table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from laguna_ref.numerics import Array

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
CONFORMING, DIVERGES, INCONCLUSIVE = "conforming", "diverges", "inconclusive"
NOT_A_NUMBER = "not a number"
EXIT_CODES = {CONFORMING: 0, DIVERGES: 1, INCONCLUSIVE: 3}


@dataclass(frozen=True)
class Divergence:
    """The first comparison, in order of execution, that no legal run explains."""

    case: str
    statistic: str
    point: str
    layer: int | None
    token: int
    floor_units: float | None
    """None for a value that is not a number, and for a choice of experts that is none."""
    expected: Any
    found: Any
    mode: str
    operation: str
    index: list[int]
    """Place of the two values inside the token's vector."""
    detail: str
    reproduce: str
    """A command that prints the oracle's side."""

    @property
    def where(self) -> str:
        """The point, the operation where one is to blame, and the token."""
        operation = f" ({self.operation})" if self.operation else ""
        return f"{self.point}{operation}, token {self.token}"

    @property
    def error(self) -> str:
        """How far off it is; empty for a choice that is none, of which ``detail`` says all."""
        if self.floor_units is not None:
            return f"{self.floor_units:,.3g} floor units ({self.statistic}, {self.mode})"
        return NOT_A_NUMBER if self.statistic == "finite" else ""

    @property
    def place(self) -> str:
        """Of the two values inside the token's vector; empty where they are all of it."""
        return f" at {self.index}" if self.index else ""


@dataclass(frozen=True)
class PointResult:
    """The worst statistic of one trace point in one mode."""

    point: str
    mode: str
    statistic: str
    value: float
    floor_units: float
    token: int
    status: str
    """``inside``, ``outside``, or ``inherited``: outside, by no more than what came before."""


@dataclass
class RoutingResult:
    """The routing contract, counted."""

    compared: int = 0
    """Choices: tokens times sparse layers."""
    excused: int = 0
    """Other experts than the oracle's, by a margin inside the measured noise."""
    violations: int = 0
    """Other experts, by a margin outside of it."""
    contaminated: int = 0
    """Tokens that follow a choice which may have differed and cannot be replayed."""
    weights_outside: int = 0
    """Layers whose weights are not those of the experts chosen."""
    not_normalised: int = 0
    """Layers whose weights do not add up to 1, where the config says they must."""


@dataclass(frozen=True)
class LogitsResult:
    """How near the next-token distributions are."""

    tokens: int
    greatest_kl_nats: float
    mean_kl_nats: float
    same_top_token: int
    """Tokens for which both rank the same one first."""
    greatest_rank: int
    """Of the oracle's top token in the backend's order; 0 is first."""


@dataclass
class Plots:
    """Arrays for the pages with plots; not part of the JSON."""

    heat: Array | None = None
    """[layers, T] floor units of the residual stream."""
    kl: Array | None = None
    """[T] nats."""
    flips: list[tuple[int, int, float, bool]] = field(default_factory=list)
    """(layer, token, margin over its noise, whether the choice differed)."""


@dataclass
class Report:
    """A judgement of one dump."""

    verdict: str
    reason: str
    case: str
    backend: dict[str, Any]
    model_sha256: str | None
    judged_by: dict[str, Any]
    threshold: float | None = None
    """Floor units that a report of a legal backend stays under."""
    first_divergence: Divergence | None = None
    points: list[PointResult] = field(default_factory=list)
    routing: RoutingResult = field(default_factory=RoutingResult)
    logits: LogitsResult | None = None
    mistakes: list[str] = field(default_factory=list)
    """Mistakes of the dump itself."""
    missing: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Ways to compare that were not possible, and why."""
    plots: Plots = field(default_factory=Plots)

    def conclude(self, verdict: str, reason: str) -> Report:
        """Sets the verdict, and why it is so; returns the report."""
        self.verdict, self.reason = verdict, reason
        return self

    @property
    def exit_code(self) -> int:
        """0 conforming, 1 diverges, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    @property
    def share_of_budget(self) -> float | None:
        """Greatest comparison over the threshold; below 1 when conforming."""
        if not self.points or not self.threshold:
            return None
        return max(point.floor_units for point in self.points) / self.threshold

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, described in docs/report-format.md."""
        first = None if self.first_divergence is None else _plain(asdict(self.first_divergence))
        return {
            "schema": SCHEMA,
            "case": self.case,
            "backend": {key: self.backend.get(key) for key in ("name", "version", "config")},
            "model": {"sha256": self.model_sha256},
            "verdict": self.verdict,
            "first_divergence": first,
            "points": [_plain(asdict(point)) for point in self.points],
            "routing": asdict(self.routing),
            "logits": None if self.logits is None else _plain(asdict(self.logits)),
            "laws": [],
            "judged_by": _plain(self.judged_by),
            "threshold_floor_units": _plain(self.threshold),
            "share_of_budget": _plain(self.share_of_budget),
            "mistakes_of_the_dump": list(self.mistakes),
            "missing": list(self.missing),
            "left_out": list(self.left_out),
            "reason": self.reason,
        }

    def print(self, console: Console) -> None:
        """A table for people."""
        from laguna_ref.conformance.terminal import print_report

        print_report(self, console)

    def to_html(self) -> str:
        """One self-contained page with plots; needs the extra ``report``."""
        from laguna_ref.conformance.html import page

        return page(self)


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
