"""``laguna-ref golden verify`` against the committed hashes, and against a changed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from laguna_ref.cli import main
from laguna_ref.golden.hashes import COMMITTED, GoldenError, read_hashes


def test_this_machine_comes_to_the_committed_hashes() -> None:
    result = CliRunner().invoke(main, ["golden", "verify", "--json"])
    assert json.loads(result.stdout)["verdict"] == "equal"
    assert result.exit_code == 0


def test_a_difference_is_exit_code_1(tmp_path: Path) -> None:
    raw = json.loads(COMMITTED.read_text())
    raw["cases"] = raw["cases"][:1]
    raw["cases"][0]["tokens"][-1] += 1
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(raw))
    result = CliRunner().invoke(main, ["golden", "verify", "--hashes", str(changed)])
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout


def test_hashes_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    raw = json.loads(COMMITTED.read_text()) | {"model_sha256": "0" * 64}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(raw))
    with pytest.raises(GoldenError, match="another checkpoint"):
        read_hashes(other)
    result = CliRunner().invoke(main, ["golden", "verify", "--hashes", str(other)])
    assert result.exit_code == 2
