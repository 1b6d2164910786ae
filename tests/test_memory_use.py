"""Figures of the process, as far as the system gives them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from laguna_ref import memory_use as module
from laguna_ref.memory_use import MemoryUse, memory_use


def test_figures_are_read_where_linux_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "io").write_text("rchar: 5\nread_bytes: 8192\ncancelled_write_bytes: 1\n")
    (tmp_path / "status").write_text("Name:\tpython\nRssAnon:\t    1200 kB\nRssFile:\t 7 kB\n")
    monkeypatch.setattr(module, "PROC", tmp_path)
    monkeypatch.setattr(module, "major_faults", lambda: 3)
    found = memory_use()
    assert found == MemoryUse(3, 8192, 1200 * 1024)
    assert found.to_json() == {
        "major_faults": 3, "read_bytes": 8192, "anonymous_bytes": 1228800
    }  # fmt: skip
    assert found.since(MemoryUse(1, 192, 999)) == MemoryUse(2, 8000, 1228800)
    (tmp_path / "io").unlink()
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert memory_use() == MemoryUse(3, 0, 0)


def test_other_systems_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_resource(name: str, *args: Any, **options: Any) -> Any:
        if name == "resource":
            raise ImportError
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_resource)
    assert module.major_faults() == 0
