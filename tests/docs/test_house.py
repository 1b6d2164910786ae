"""docs/house.md: every file and folder it names exists; CITATION.cff is of this version."""

from __future__ import annotations

import re

import pytest

import laguna_ref
from tests.docs.shown import ROOT

TEXT = (ROOT / "docs" / "house.md").read_text("utf-8")
ROOMS = "laguna_ref|laguna_ref_pytest|numba_kernels|tests|tools|docs"
PATHS = sorted(set(re.findall(rf"`((?:{ROOMS})/[^`\s]*)`", TEXT)))


@pytest.mark.parametrize("path", PATHS)
def test_it_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_citation_is_of_this_version() -> None:
    said = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert said
    assert said[1] == laguna_ref.__version__


def test_every_room_is_described() -> None:
    rooms = [path.parent.name for path in (ROOT / "laguna_ref").glob("*/__init__.py")]
    missing = [room for room in rooms if f"`laguna_ref/{room}/`" not in TEXT]
    assert not missing
    assert len(PATHS) > 40
