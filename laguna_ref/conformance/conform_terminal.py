"""The report on a backend as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laguna_ref.conformance.conform_report import BROKEN, FAILED, ConformReport
from laguna_ref.conformance.report import CONFORMING, DIVERGES
from laguna_ref.conformance.terminal import STYLE
from laguna_ref.conformance.terminal import print_report as print_case

if TYPE_CHECKING:
    from rich.console import Console

LAW_STYLE = {"holds": STYLE[CONFORMING], BROKEN: STYLE[DIVERGES], FAILED: "bold yellow"}


def print_report(report: ConformReport, console: Console) -> None:
    """The case that tells most, all cases, all laws, and last the verdict."""
    from rich.text import Text

    told = report.first
    if told is not None:
        print_case(told, console)
    _print_cases(report, console)
    if report.laws:
        _print_laws(report, console)
    for law in report.broken:
        console.print(Text(f"law {law.law}: {law.detail}"), soft_wrap=True)
        console.print(Text(f"  --reproduce {law.reproduce}"), soft_wrap=True)
    for text in report.left_out:
        console.print(Text(f"left out: {text}"), soft_wrap=True)
    style = STYLE.get(report.verdict, "bold yellow")
    name = f"  {report.backend.get('name')} {report.backend.get('version') or ''}".rstrip()
    console.print(
        Text.assemble((report.verdict, style), f"{name}: {report.reason}"), soft_wrap=True
    )


def _print_cases(report: ConformReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    if not report.cases:
        return
    table = Table("case", "verdict", "share of budget", "comparisons", "reason")
    for case in report.cases:
        share = case.share_of_budget
        table.add_row(
            Text(case.case), Text(case.verdict, STYLE.get(case.verdict, "bold yellow")),
            "-" if share is None else f"{share:.2g}", str(len(case.points)), Text(case.reason),
        )  # fmt: skip
    console.print(table)


def _print_laws(report: ConformReport, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("law", "status", "examples", "")
    for law in report.laws:
        detail = "" if law.status == BROKEN else law.detail
        table.add_row(
            Text(law.law), Text(law.status, LAW_STYLE.get(law.status, "yellow")),
            str(law.examples), Text(detail),
        )  # fmt: skip
    console.print(table)
