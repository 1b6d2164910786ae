"""The report on a backend: every case, every law, one verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from laguna_ref.conformance.comparisons import MODES
from laguna_ref.conformance.report import (
    CONFORMING,
    DIVERGES,
    EXIT_CODES,
    INCONCLUSIVE,
    SCHEMA,
    Report,
    RoutingResult,
)
from laguna_ref.golden.dump import execution_order

if TYPE_CHECKING:
    from rich.console import Console

BROKEN = "broken"
FAILED = "failed"


class LawLike(Protocol):
    """What became of a law: ``conformance.laws.LawResult``."""

    @property
    def law(self) -> str:
        """Its name."""

    @property
    def status(self) -> str:
        """``holds``, ``broken``, ``failed`` or ``not applicable``."""

    @property
    def examples(self) -> int:
        """How many were judged."""

    @property
    def detail(self) -> str:
        """What was seen, how the backend failed, or why it is not applicable."""

    @property
    def reproduce(self) -> str:
        """What ``--reproduce`` takes."""


@dataclass
class ConformReport:
    """A judgement of a whole backend."""

    backend: dict[str, Any]
    model_sha256: str | None
    cases: list[Report]
    laws: Sequence[LawLike] = ()
    left_out: list[str] = field(default_factory=list)
    """Cases and laws that were not put to it, and why; never counted as passed."""
    died: str | None = None
    """Why it answers no more."""

    @property
    def verdict(self) -> str:
        """Diverges if any case does or a law is broken; conforming if every case that was put to
        it conforms, one at least, and it failed at no law."""
        verdicts = {case.verdict for case in self.cases}
        if DIVERGES in verdicts or self.broken:
            return DIVERGES
        if verdicts == {CONFORMING} and self.died is None and not self.failed:
            return CONFORMING
        return INCONCLUSIVE

    @property
    def exit_code(self) -> int:
        """0 conforming, 1 diverges, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    @property
    def broken(self) -> list[LawLike]:
        """Laws that do not hold."""
        return [law for law in self.laws if law.status == BROKEN]

    @property
    def failed(self) -> list[LawLike]:
        """Laws at which the backend itself failed: neither kept nor broken."""
        return [law for law in self.laws if law.status == FAILED]

    @property
    def first(self) -> Report | None:
        """The diverging case whose first divergence is the most telling: of the tightest mode,
        and there the earliest in execution."""
        diverging = [case for case in self.cases if case.verdict == DIVERGES]
        return min(diverging, key=_telling, default=None)

    @property
    def reason(self) -> str:
        """One line."""
        counts = Counter(case.verdict for case in self.cases)
        if self.first is not None:
            rest = f"; {counts[DIVERGES]} of {len(self.cases)} cases diverge"
            return f"{self.first.case}: {self.first.reason}{rest}"
        if self.broken:
            law = self.broken[0]
            return f"law {law.law}: {law.detail}"
        if self.died is not None:
            judged = sum(bool(case.points) for case in self.cases)
            return f"{self.died}; {judged} of {len(self.cases)} cases had been judged"
        if not self.cases:
            return "nothing was compared: " + (self.left_out or ["there is no case"])[0]
        if counts[INCONCLUSIVE]:
            case = next(case for case in self.cases if case.verdict == INCONCLUSIVE)
            return (
                f"{counts[INCONCLUSIVE]} of {len(self.cases)} cases are inconclusive; "
                f"{case.case}: {case.reason}"
            )
        if self.failed:
            law = self.failed[0]
            return (
                f"{len(self.failed)} of {len(self.laws)} laws could not be judged; "
                f"{law.law}: {law.detail}"
            )
        held = sum(law.status == "holds" for law in self.laws)
        share = max((case.share_of_budget or 0.0) for case in self.cases)
        laws = f"; {held} of {len(self.laws)} laws hold" if self.laws else "; no law was put to it"
        return f"cases: {len(self.cases)}, {share:.2g} of the budget used{laws}"

    @property
    def routing(self) -> RoutingResult:
        """All cases' counts."""
        total: Counter[str] = Counter()
        for case in self.cases:
            total.update(asdict(case.routing))
        return RoutingResult(**total)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, described in docs/report-format.md."""
        cases = [case.to_json() for case in self.cases]
        first = self.first
        return {
            "schema": SCHEMA,
            "backend": {key: self.backend.get(key) for key in ("name", "version", "config")},
            "model": {"sha256": self.model_sha256},
            "verdict": self.verdict,
            "first_divergence": None if first is None else first.to_json()["first_divergence"],
            "points": _worst(cases),
            "routing": asdict(self.routing),
            "laws": [
                {key: getattr(law, key) for key in
                 ("law", "status", "examples", "detail", "reproduce")}
                for law in self.laws
            ],
            "judged_by": next((case["judged_by"] for case in cases if case["judged_by"]), {}),
            "left_out": list(self.left_out),
            "reason": self.reason,
            "cases": cases,
        }  # fmt: skip

    def print(self, console: Console) -> None:
        """Tables for people."""
        from laguna_ref.conformance.conform_terminal import print_report

        print_report(self, console)

    def to_html(self) -> str:
        """One self-contained page with plots; needs the extra ``report``."""
        from laguna_ref.conformance.html import conform_page

        return conform_page(self)


def _telling(case: Report) -> tuple[int, tuple[int, int]]:
    first = case.first_divergence
    if first is None:
        return len(MODES) + 1, (0, 0)
    mode = MODES.index(first.mode) if first.mode in MODES else len(MODES)
    return mode, execution_order(first.point)


def _worst(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every point and mode the worst of all cases, named with its case."""
    worst: dict[tuple[str, str, str], dict[str, Any]] = {}
    for case in cases:
        for point in case["points"]:
            at = point["point"], point["mode"], "" if point["mode"] in MODES else point["statistic"]
            if at not in worst or _units(worst[at]) < _units(point):
                worst[at] = {**point, "case": case["case"]}
    return list(worst.values())


def _units(point: dict[str, Any]) -> float:
    """What is no number is null in JSON, and worst of all."""
    return math.inf if point["floor_units"] is None else float(point["floor_units"])
