"""The site's own extensions (needs the extra ``docs``; .ci/run has it)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from laguna_ref.conformance.faults import CATALOGUE
from tests.docs.shown import ROOT

pytest.importorskip("sphinx", reason="the extra docs is not installed")
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import house_docstrings
import house_tables
import nothing_fetched


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/require.js"></script>',
        '<link rel="stylesheet" type="text/css" href="//fonts.example/a.css" />',
        '<img alt="badge" src="http://img.example/a.svg"/>',
    ],
)
def test_what_a_page_would_fetch_is_found(html: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html)
    assert nothing_fetched.fetched(tmp_path)


def test_links_and_own_files_are_not_fetched_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<a href="https://github.com/a/b">b</a><script src="_static/a.js"></script>'
    )
    (tmp_path / "a.css").write_text("a { background: url(data:image/svg+xml,x) }")
    assert nothing_fetched.fetched(tmp_path) == []
    (tmp_path / "b.css").write_text("@import 'https://fonts.example/a.css';")
    assert nothing_fetched.fetched(tmp_path)


def test_labelled_lines_become_fields() -> None:
    def function(path: str, seed: int) -> None: ...

    lines = [
        "Reads H*C values.",
        "",
        "Shapes: x [T,",
        "H*C].",
        "path: a folder",
        "",
        "More_ *here*.",
    ]
    house_docstrings.process(None, "function", "f", function, None, lines)
    assert lines == [
        "Reads H\\*C values.", "", "", ":Shapes: x [T,", "    H\\*C].", ":path: a folder", "",
        "More\\_ *here*.",
    ]  # fmt: skip


def test_literals_and_examples_are_left_alone() -> None:
    lines = ["``a*b`` and a*b", "", ">>> a * b"]
    house_docstrings.process(None, "function", "f", None, None, lines)
    assert lines == ["``a*b`` and a\\*b", "", ">>> a * b"]


def test_tables_hold_everything() -> None:
    faults = "\n".join(house_tables.fault_catalogue())
    assert [name for name in CATALOGUE if f"`{name}`" not in faults] == []
    assert len(list(house_tables.axis_letters())) == 2 + len(house_tables.LETTERS)
    points = "\n".join(house_tables.trace_points())
    assert "| `model.layers.N.self_attn.k_cached` | [T, G, C] |" in points
    assert "| `model.layers.N` | [T, D] |" in points
    modules = {path.stem for path in (ROOT / "numba_kernels").glob("*.py")} - {"__init__"}
    kernels = "\n".join(house_tables.kernel_modules())
    assert [name for name in modules if f"`{name}`" not in kernels] == []
