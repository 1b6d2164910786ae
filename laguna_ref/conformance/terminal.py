"""A report as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laguna_ref.conformance.report import CONFORMING, DIVERGES, Report

if TYPE_CHECKING:
    from rich.console import Console

STYLE = {CONFORMING: "bold green", DIVERGES: "bold red"}
MOST_ROWS = 12
MOST_LINES = 3


def print_report(report: Report, console: Console) -> None:
    """Verdict, first divergence, and the comparisons nearest to, or beyond, the threshold."""
    from rich.table import Table
    from rich.text import Text

    style = STYLE.get(report.verdict, "bold yellow")
    line = Text.assemble((report.verdict, style), f"  {report.case}: {report.reason}")
    console.print(line, soft_wrap=True)
    first = report.first_divergence
    if first is not None:
        rows = [
            ("first divergence", first.where),
            ("error", first.error),
            ("expected", f"{first.expected}{first.place}"),
            ("found", f"{first.found}"),
            ("", first.detail),
            ("reproduce", first.reproduce),
        ]
        for name, text in rows:
            if text:
                console.print(Text(f"  {name:<18}{text}"), soft_wrap=True)
    if report.points:
        table = Table("point", "mode", "statistic", "floor units", "token", "")
        worst = sorted(report.points, key=lambda point: -point.floor_units)[:MOST_ROWS]
        for point in worst:
            table.add_row(
                point.point, point.mode, point.statistic, f"{point.floor_units:,.3g}",
                str(point.token) if point.token >= 0 else "all", point.status,
            )  # fmt: skip
        console.print(table)
        share = report.share_of_budget
        inside = sum(point.status == "inside" for point in report.points)
        console.print(
            f"{inside} of {len(report.points)} comparisons inside; share of the budget used: "
            f"{share:.3g}" if share is not None else "", soft_wrap=True,
        )  # fmt: skip
    r = report.routing
    if r.compared or r.contaminated:
        console.print(
            f"routing: {r.compared} choices, {r.excused} excused, {r.violations} violations, "
            f"{r.contaminated} tokens contaminated, weights wrong in {r.weights_outside} layers, "
            f"not normalised in {r.not_normalised}", soft_wrap=True,
        )  # fmt: skip
    for title, lines in (
        ("mistaken", report.mistakes),
        ("missing", report.missing),
        ("left out", report.left_out),
    ):
        for text in lines[:MOST_LINES]:
            console.print(Text(f"{title}: {text}"), soft_wrap=True)
        if len(lines) > MOST_LINES:
            console.print(f"{title}: {len(lines) - MOST_LINES} more", soft_wrap=True)
    by = report.judged_by
    console.print(
        Text("judged by: " + ", ".join(f"{k} {v}" for k, v in by.items())), soft_wrap=True
    )
