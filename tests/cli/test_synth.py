"""laguna-ref synth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import laguna_ref
from laguna_ref.checkpoint import preset
from laguna_ref.cli import synth
from tests.cli.conftest import CONFIG, Run
from tests.small import small_config


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "given.json"
    file.write_text(json.dumps(CONFIG), encoding="utf-8")
    return file


def test_a_config_becomes_a_model_that_generates(
    run: Run, run_json: Any, config_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    result = run("synth", "--config", config_file, "--out", out, "--seed", 3)
    assert result.stdout == ""
    assert "3 layers" in result.stderr
    assert "seed 3" in result.stderr
    generated = run_json("generate", "--token-ids", "2", "--max-tokens", 4, "--model", out)
    assert generated["settings"]["temperature"] == 0
    assert generated["settings"]["stop_ids"] == [2, 24]
    assert run("inspect", "--verify", "--model", out).stdout.endswith("verified: 0 faults\n")


def test_json_and_layer_ids(run_json: Any, config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    found = run_json("synth", "--config", config_file, "--layer-ids", "0,2", "--out", out)
    assert (found["layers"], found["files"]) == (2, ["model.safetensors"])
    assert found["bytes"] == (out / "model.safetensors").stat().st_size
    config = laguna_ref.LagunaConfig.from_file(out)
    assert [layer.num_heads for layer in config.layers] == [4, 2]
    assert laguna_ref.load(out)([2, 3]).shape == (2, CONFIG["vocab_size"])


def test_layers(run_json: Any, config_file: Path, tmp_path: Path) -> None:
    found = run_json("synth", "--config", config_file, "--layers", 2, "--out", tmp_path / "made")
    assert found["layers"] == 2


def test_presets_are_sliced_before_they_are_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real widths take seconds to write, so only what would be written is looked at."""
    written: list[dict[str, Any]] = []

    def write(path: Path, config: laguna_ref.LagunaConfig, tensors: Any, **_: Any) -> None:
        written.append(config.raw)
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"x")

    monkeypatch.setattr(laguna_ref.checkpoint, "write", write)
    run("synth", "--preset", "xs2-int4", "--layers", 4, "--out", tmp_path / "a")
    run("synth", "--layer-ids", "0,1,2,31", "--out", tmp_path / "b")
    assert written == [preset("xs2-int4", 4), preset("xs2-int4", layer_ids=[0, 1, 2, 31])]
    assert synth.command.name == "synth"


def test_overwriting_is_asked_for(run: Run, config_file: Path, tmp_path: Path) -> None:
    arguments = ("synth", "--config", config_file, "--out", tmp_path / "made")
    run(*arguments)
    assert "not empty" in run(*arguments, code=2).stderr
    run(*arguments, "--overwrite")


def test_an_unknown_key_can_be_ignored(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "given.json"
    file.write_text(json.dumps(small_config(surprise=1)), encoding="utf-8")
    arguments = ("synth", "--config", file, "--layers", 1, "--out", tmp_path / "made")
    assert "--ignore-config-key surprise" in run(*arguments, code=2).stderr
    run(*arguments, "--ignore-config-key", "surprise")


def test_progress_in_bytes(
    run: Run, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("synth", "--config", config_file, "--out", tmp_path / "made").stderr
    assert "writing" in shown
    assert "kB" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "xs9"], "no such preset"),
        (["--preset", "xs2-fp8"], "weight format not supported"),
        (["--preset", "xs2", "--layers", "41"], "expected 0 to 39"),
        (["--layers", "2", "--layer-ids", "0"], "give --layers or --layer-ids, not both"),
        (["--preset", "xs2", "--config", "x.json"], "give --preset or --config, not both"),
        (["--config", "/nowhere.json"], "/nowhere.json: cannot be read"),
        (["--layer-ids", "zero"], "found 'zero'"),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("synth", *arguments, "--out", tmp_path / "made", code=2)
    assert message in result.stderr
    assert not (tmp_path / "made").exists()


def test_layers_that_a_config_does_not_have(run: Run, config_file: Path, tmp_path: Path) -> None:
    arguments = ("synth", "--config", config_file, "--layers", 4, "--out", tmp_path / "made")
    assert "no such layers; expected 0 to 2" in run(*arguments, code=2).stderr
