"""Numbers as they are shown, and the examples in the command line's docstrings."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.cli.output import human
from laguna_ref.ranges import ranges


@pytest.mark.parametrize(
    "module", ["laguna_ref.sizes", "laguna_ref.cli.options", "laguna_ref.cli.output",
               "laguna_ref.cli.prompts"],
)  # fmt: skip
def test_examples_in_docstrings(module: str) -> None:
    found = doctest.testmod(import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9995, "10.0 kB"),
        (99950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (2_684_354_560, "2.68 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_human(number: float, shown: str) -> None:
    assert human(number, "B") == shown


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_index_once(indices: set[int]) -> None:
    named: list[int] = []
    for part in filter(None, ranges(sorted(indices)).split(", ")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(indices)
