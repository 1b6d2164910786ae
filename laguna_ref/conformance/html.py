"""A report as one page that needs no other file; needs the extra ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laguna_ref.conformance.conform_report import ConformReport
from laguna_ref.conformance.report import DIVERGES, Report
from laguna_ref.errors import LagunaError

TEMPLATE = Path(__file__).with_name("report.html.jinja")
CONFORM_TEMPLATE = Path(__file__).with_name("conform.html.jinja")
MOST_PLOTTED = 4
"""Cases of a whole backend that are drawn: a page of all would be tens of megabytes."""


class MissingExtraError(LagunaError):
    """A library that only an optional extra installs."""


def page(report: Report) -> str:
    """The HTML text; raises MissingExtraError without jinja2 and matplotlib."""
    return _rendered(
        TEMPLATE, report=report, first=report.first_divergence, plots=_plots_of(report)
    )


def conform_page(report: ConformReport) -> str:
    """The same of a whole backend; the cases that diverge, or come nearest, are drawn."""
    ranked = sorted(
        (case for case in report.cases if case.points or case.first_divergence),
        key=lambda case: (case.verdict != DIVERGES, -(case.share_of_budget or 0.0)),
    )
    shown = [(case, _plots_of(case)) for case in ranked[:MOST_PLOTTED]]
    return _rendered(CONFORM_TEMPLATE, report=report, shown=shown)


def _plots_of(report: Report) -> list[tuple[str, Any]]:
    try:
        from markupsafe import Markup

        from laguna_ref.conformance.plots import plots_of

        return [(caption, Markup(svg)) for caption, svg in plots_of(report)]
    except ImportError as problem:
        raise _missing(problem) from problem


def _rendered(template: Path, **values: Any) -> str:
    try:
        import jinja2
    except ImportError as problem:
        raise _missing(problem) from problem
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text: str = environment.from_string(template.read_text("utf-8")).render(**values)
    return text


def _missing(problem: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"{problem.name} is not installed", expected="pip install 'laguna-ref[report]'"
    )
