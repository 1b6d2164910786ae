"""The bar on stderr while weights come from disk; how fast a disk is does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import laguna_ref
from laguna_ref.checkpoint import Checkpoint
from laguna_ref.cli import prefill_bar
from laguna_ref.cli.generate import _from_disk
from laguna_ref.errors import InputError
from laguna_ref.generate import PREFILL_CHUNK
from laguna_ref.memory_use import MemoryUse
from tests.cli.conftest import Run


def pretend(monkeypatch: pytest.MonkeyPatch, share: float | None, worth: int) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(Checkpoint, "share_in_memory", lambda self: share)
    monkeypatch.setattr(prefill_bar, "WORTH_A_BAR", worth)


@pytest.mark.parametrize(
    ("share", "worth", "shown"),
    [(0.25, 1, True), (1.0, 1, False), (None, 1, False), (0.0, 1_000_000_000, False)],
)
@pytest.mark.parametrize("command", ["generate", "logits", "trace"])
def test_it_is_shown_for_what_is_large_and_not_in_memory(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch,
    command: str, share: float | None, worth: int, shown: bool,
) -> None:  # fmt: skip
    pretend(monkeypatch, share, worth)
    found = run(command, "x", "--model", model, "--json")
    assert ("reading weights" in found.stderr) == shown
    assert "reading weights" not in found.stdout


def test_a_long_prompt_goes_on_with_its_own_bar(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 0.0, 1)
    ids = " ".join(["70"] * (PREFILL_CHUNK + 3))
    shown = run("generate", "--token-ids", ids, "--max-tokens", 1, "--model", model).stderr
    assert "reading weights" in shown.partition("prefill ")[0]
    assert "prefill " in shown.partition("prefill:")[0]


def test_the_engine_is_given_back(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0.0, 1)
    loaded = laguna_ref.load(model)
    engine = loaded.engine
    with pytest.raises(InputError), prefill_bar.prefill_bar(loaded, 3):
        loaded([-1])
    assert loaded.engine is engine
    with prefill_bar.prefill_bar(loaded, 3) as bar:
        assert loaded.engine is not engine
        bar(3, 3)
        assert loaded.engine is engine


def test_what_came_from_disk_is_told(run_json: Any, model: Path) -> None:
    found = run_json("generate", "x", "--max-tokens", 1, "--model", model)
    assert set(found["memory"]) == {"major_faults", "read_bytes", "anonymous_bytes"}
    assert _from_disk(MemoryUse(3, 999_999, 0)) == ""
    told = _from_disk(MemoryUse(3, 2_500_000_000, 0))
    assert told == "; from disk: 2.50 GB, 3 major faults"
