"""No file names a place that exists on one machine only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.meta.sources import ROOT

FOLDERS = ("laguna_ref", "numba_kernels", "tests", "tools", "docs", ".ci")
SUFFIXES = {".py", ".md", ".toml", ".json", ".txt", ".yaml", ".yml", ".jinja", ".sh", ""}
# Spelled with a class so that this file does not name one itself.
ABSOLUTE = re.compile(r"[\"'`\s(=](/(?:work|home|root|Users|mnt)[/]\S*)")


def files() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [p for p in found if p.suffix in SUFFIXES and "__pycache__" not in p.parts]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_absolute_machine_path(path: Path) -> None:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        return
    found = ABSOLUTE.findall(text)
    assert not found, f"{path.relative_to(ROOT)} names {found[0]}"
