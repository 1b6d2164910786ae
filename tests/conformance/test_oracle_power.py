"""The page on the oracle's power is of today's catalogue, and a run today agrees with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from laguna_ref.conformance.faults import CATALOGUE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "oracle-power.md"
EVERY = 13
"""Of the faults, so many apart, a few are planted anew."""


def sections() -> dict[str, str]:
    parts = PAGE.read_text("utf-8").split("\n## ")[1:]
    return {part.partition("\n")[0]: part for part in parts}


def cells(section: str) -> dict[str, list[str]]:
    """Fault -> what the table says by trace and by logits."""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if " | " in line]
    return {row[0]: row[-2:] for row in rows if row[0] in CATALOGUE}


@pytest.mark.parametrize("precision", ["float32", "bfloat16+fp8-kv"])
def test_every_fault_is_on_the_page(precision: str) -> None:
    section = sections()[precision]
    invisible = section.split("\nInvisible: ")[1].partition("\n")[0]
    missing = [name for name in CATALOGUE if name not in cells(section) and name not in invisible]
    assert not missing, "run tools/oracle_power.py"


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(CATALOGUE)[::EVERY])
def test_it_is_named_as_the_page_says(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    import oracle_power

    said = cells(sections()["float32"])[fault]
    rows = oracle_power.examine(fault, "float32")
    named = [row.verdict == "named" and row.rank == 1 for row in rows]
    assert named == [cell.startswith("named") for cell in said]
