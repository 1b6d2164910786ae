"""Each walkthrough's cells run from top to bottom, without Sphinx and without IPython.

The site executes them too, as notebooks; this is for whoever has not installed the extra ``docs``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib
import pytest

from tests.docs.shown import ROOT, Command, run

FOLDER = ROOT / "docs" / "walkthroughs"
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "index.md")
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"\A(?::[\w-]+:[^\n]*\n)+")


def cells(page: Path) -> list[str]:
    """Their code, without options such as ``:tags:``."""
    return [OPTION.sub("", code) for code in CELL.findall(page.read_text("utf-8"))]


def execute(code: str, names: dict[str, object]) -> None:
    """One cell; one that starts with ``%%bash`` is of the shell, as in a notebook."""
    if not code.startswith("%%bash"):
        exec(compile(code, "cell", "exec"), names)
        return
    for line in code.splitlines()[1:]:
        said, status = run(Command(line, ""), Path.cwd())
        assert status in (0, 1, 3), f"exit {status}: {line}\n{said}"  # a verdict, not a mistake


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_cells_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.chdir(tmp_path)
    found = cells(page)
    assert found
    names: dict[str, object] = {"__name__": "walkthrough"}
    for code in found:
        execute(code, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_it_quotes_and_breaks(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "{literalinclude}" in text, "code of the package is quoted from its file"
    assert re.search(r"^## .*[Bb]reak", text, re.MULTILINE), "it ends by breaking one thing"


def test_there_are_walkthroughs() -> None:
    assert PAGES
