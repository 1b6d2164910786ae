"""What other programs took of the machine, told apart from what this one took."""

from __future__ import annotations

from pathlib import Path

import pytest

from laguna_ref.bench import others
from laguna_ref.bench.others import Usage


@pytest.mark.parametrize(
    ("everything", "own", "share"), [(0, 0, 0), (20, 20, 0), (20, 0, 1), (15, 5, 0.5), (5, 9, 0)]
)
def test_the_rest_is_that_of_others(everything: float, own: float, share: float) -> None:
    before = Usage(100.0, 40.0, 7.0)
    after = Usage(100.0 + everything, 40.0 + own, 17.0)
    assert after.others_since(before, 2) == share
    assert before.others_since(before, 2) == 0


def test_usage_is_read_from_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 4000 500 6 7 8 90 91\ncpu0 1 2 3\n")
    monkeypatch.setattr(others, "STAT", stat)
    monkeypatch.setattr(others.os, "sysconf", lambda _: 100)
    found = others.usage()
    assert found is not None
    assert found.everything == 1.71
    monkeypatch.setattr(others, "STAT", tmp_path / "none")
    assert others.usage() is None
    assert others.note(found) == []


def test_it_is_noted_when_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(others, "usage", lambda: Usage(3.0, 0.0, 10.0))
    assert others.note(Usage(2.9, 0.0, 0.0)) == []
    assert "30% of the CPU time" in others.note(Usage(0.0, 0.0, 0.0))[0]
    assert others.note(None) == []
