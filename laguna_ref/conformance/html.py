"""A report as one page that needs no other file; needs the extra ``report``."""

from __future__ import annotations

from pathlib import Path

from laguna_ref.conformance.report import Report
from laguna_ref.errors import LagunaError

TEMPLATE = Path(__file__).with_name("report.html.jinja")


class MissingExtraError(LagunaError):
    """A library that only an optional extra installs."""


def page(report: Report) -> str:
    """The HTML text; raises MissingExtraError without jinja2 and matplotlib."""
    try:
        import jinja2
        from markupsafe import Markup

        from laguna_ref.conformance.plots import plots_of

        plots = [(caption, Markup(svg)) for caption, svg in plots_of(report)]
    except ImportError as problem:
        raise MissingExtraError(
            f"{problem.name} is not installed", expected="pip install 'laguna-ref[report]'"
        ) from problem
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    text: str = template.render(report=report, first=report.first_divergence, plots=plots)
    return text
