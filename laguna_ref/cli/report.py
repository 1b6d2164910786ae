"""What commands that judge have in common: the report on stdout, and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from laguna_ref.cli.output import console, note, print_json
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.conformance.conform_report import ConformReport
    from laguna_ref.conformance.report import Report

HTML_OPTION = click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False),
    help="Report also as a page (needs the report extra).",
)  # fmt: skip


def require_folder_of(html: Path | None) -> None:
    """Raises InputError before anything is computed for a page that cannot be written."""
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError("no such folder", key="--html", found=str(html.parent))


def show(report: Report | ConformReport, html: Path | None, *, as_json: bool) -> int:
    """Prints the report, writes its page if there is to be one; returns the exit code."""
    if as_json:
        print_json(report.to_json())
    else:
        report.print(console())
    if html is not None:
        html.write_text(report.to_html(), encoding="utf-8")
        note(f"{html}: written")
    return report.exit_code
