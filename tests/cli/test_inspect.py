"""laguna-ref inspect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from laguna_ref.checkpoint import PRESETS, preset
from laguna_ref.checkpoint.safetensors_file import SafetensorsFile
from tests.cli.conftest import CONFIG, Run


def test_the_published_figures(run: Run) -> None:
    text = run("inspect", "--config-only", "--model", "xs2-int4").stdout
    assert "131,072 tokens" in text
    for name, figures in (
        ("on disk", ["23.9 GB"]),
        ("read per token", ["4.28 GB of weights"]),
        ("full   ", ["2.68 GB in 10 layers"]),
        ("sliding  ", ["31.5 MB in 30 layers"]),
    ):
        line = next(line for line in text.splitlines() if line.strip().startswith(name))
        assert all(figure in line for figure in figures), line


@pytest.mark.parametrize("name", PRESETS)
def test_every_published_config(run: Run, run_json: Any, tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(preset(name)), encoding="utf-8")
    by_name = run_json("inspect", "--config-only", "--model", name)
    for arguments in (
        ("--config-only", "--model", file),
        ("--config-only", "--model", tmp_path),
        ("--config", file),
    ):
        found = run_json("inspect", *arguments)
        assert found | {"source": 0} == by_name | {"source": 0}
    assert len(by_name["layers"]) == 40
    assert by_name["sizes"]["disk_bytes"] > 20e9
    assert run("inspect", "--config", file).stdout


def test_one_row_a_layer_or_one_a_kind(run: Run) -> None:
    def rows(*arguments: str) -> list[str]:
        text = run("inspect", "--config-only", "--model", "xs2-int4", *arguments).stdout
        return [line for line in text.splitlines() if "48/8" in line or "64/8" in line]

    assert len(rows("--all-layers")) == 40
    folded = rows()
    assert len(folded) == 5
    assert folded[0].split()[:3] == ["0", "(1)", "full"]
    assert "INT8 g128" in folded[4]


def test_layers_as_json(run_json: Any) -> None:
    layers = run_json("inspect", "--config-only", "--model", "xs2-int4")["layers"]
    full, sliding = layers[4], layers[31]
    assert (full["attention"], full["heads"], full["window"]) == ("full_attention", 48, None)
    assert full["rope"]["attention_factor"] == 1.0
    assert full["rope"]["attention_factor_from"] == "config"
    assert (sliding["heads"], sliding["window"], sliding["weight_format"]) == (64, 512, "INT8 g128")
    assert sliding["formats"]["mlp.shared_expert.up_proj"] == "dense"
    assert {layer["kv_cache"] for layer in layers} == {"fp8"}


def test_keys_defaults_and_ignored(run: Run, run_json: Any) -> None:
    found = run_json("inspect", "--config-only", "--model", "xs2-int4")
    unused = {entry["key"]: entry["reason"] for entry in found["unused"]}
    assert "rope_parameters.original_max_position_embeddings" in unused
    assert all(unused.values())
    defaults = {entry["key"]: entry for entry in found["defaults"]}
    assert defaults["norm_topk_prob"]["value"] is True
    assert defaults["norm_topk_prob"]["source"]
    text = run("inspect", "--config-only", "--model", "xs2-int4").stdout
    assert "keys without effect" in text
    assert "defaults taken" in text


def test_the_cache(run_json: Any) -> None:
    def cache(*arguments: object) -> dict[str, int]:
        found = run_json("inspect", "--config-only", "--model", "xs2-int4", *arguments)
        nbytes: dict[str, int] = found["kv_cache"]["bytes"]
        return nbytes

    whole = cache()
    token = {"full_attention": 10 * 2048, "sliding_attention": 30 * 2048}
    assert cache("--context", 1) == token
    assert cache("--kv-cache", "float") == {kind: 2 * nbytes for kind, nbytes in whole.items()}
    skipped = cache("--kv-cache-dtype-skip-layers", "sliding_window")
    assert skipped["full_attention"] == whole["full_attention"]
    assert skipped["sliding_attention"] == 2 * whole["sliding_attention"]


def test_a_checkpoint(run: Run, run_json: Any, model: Path) -> None:
    found = run_json("inspect", "--model", model)
    files = found["checkpoint"]
    assert files["bytes"] == found["sizes"]["disk_bytes"]
    stored = SafetensorsFile(model / "model.safetensors")
    assert files["tensors"] == len(stored.entries)
    text = run("inspect", "--model", model).stdout
    assert "files" in text
    assert "per-head" in text


def test_verify(run: Run, run_json: Any, model: Path, tmp_path: Path) -> None:
    assert run("inspect", "--verify", "--model", model).stdout.endswith("verified: 0 faults\n")
    assert run_json("inspect", "--verify", "--model", model)["faults"] == []
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    _spoil(broken / "model.safetensors", "model.norm.weight", b"\xc0\x7f")  # a bfloat16 NaN
    result = run("inspect", "--verify", "--model", broken, code=2)
    assert "fault: " in result.stdout
    assert "model.norm.weight" in result.stdout
    found = run_json("inspect", "--verify", "--model", broken, code=2)
    assert [fault["tensor"] for fault in found["faults"]] == ["model.norm.weight"]


def _spoil(path: Path, name: str, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = json.loads(data[8 : 8 + size])[name]["data_offsets"][0] + 8 + size
    data[start : start + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere"], "/nowhere: no such folder"),
        (["--model", "xs2"], "a preset has no weights; add --config-only"),
        (["--model", "/nowhere", "--config-only"], "/nowhere: cannot be read"),
        (["--config", "/nowhere/config.json"], "cannot be read"),
        (["--config-only", "--verify", "--model", "xs2"], "--verify needs weights"),
        (["--config-only", "--model", "xs2", "--context", "0"], "--context"),
    ],
)
def test_bad_input(run: Run, arguments: list[str], message: str) -> None:
    result = run("inspect", *arguments, code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_small_models_are_not_folded(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG), encoding="utf-8")
    text = run("inspect", "--config", file).stdout
    assert sum("INT4 g4" in line and "sparse" in line for line in text.splitlines()) == 2
