"""Links between the project's own pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for name, anchor in LINK.findall(page.read_text("utf-8")):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: no {name}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: no #{anchor} in {target.name}"


def test_tables_are_whole() -> None:
    """A blank line ends a table: rows after one would be shown as they are written."""
    for page in PAGES:
        lines = page.read_text("utf-8").splitlines()
        for before, row, after in zip(lines, lines[1:], lines[2:], strict=False):
            if row.startswith("|") and not before.strip():
                assert re.match(r"\|[ :\-|]+\|$", after), f"{page.name}: {row[:60]}"
