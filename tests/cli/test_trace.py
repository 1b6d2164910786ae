"""laguna-ref trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import laguna_ref
from laguna_ref.cli.trace import numbered_shape
from laguna_ref.trace import trace_points
from tests.cli.conftest import Run
from tests.small import small_config

TOKENS = [2, 70, 71]
IDS = ("--token-ids", "2,70,71")


def test_values_in_a_file(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.safetensors"
    points = ("--point", "model.layers.*.mlp.gate", "--point", "*.topk_ids", "--point", "lm_head")
    result = run("trace", *IDS, *points, "--out", out, "--model", model)
    assert "5 points of 3 tokens" in result.stderr
    recorder = laguna_ref.Recorder("*")
    laguna_ref.load(model)(TOKENS, trace=recorder)
    with safe_open(out, framework="np") as file:
        names = set(file.keys()) - {"tokens", "positions"}
        assert names == {
            "model.layers.1.mlp.gate", "model.layers.2.mlp.gate", "lm_head",
            "model.layers.1.mlp.topk_ids", "model.layers.2.mlp.topk_ids",
        }  # fmt: skip
        for name in names:
            np.testing.assert_array_equal(file.get_tensor(name), recorder[name])
        assert file.get_tensor("tokens").tolist() == TOKENS
        assert file.get_tensor("positions").tolist() == [0, 1, 2]
        assert file.metadata()["numerics"] == "float32"


def test_statistics(run: Run, run_json: Any, model: Path) -> None:
    found = run_json("trace", *IDS, "--point", "model.norm", "--model", model)["points"]
    recorder = laguna_ref.Recorder("model.norm")
    laguna_ref.load(model)(TOKENS, trace=recorder)
    value = recorder["model.norm"].astype(np.float64)
    assert found == {
        "model.norm": {
            "shape": [3, 24],
            "dtype": "float32",
            "mean": value.mean(),
            "std": value.std(),
            "absmax": np.abs(value).max(),
            "zeros": (value == 0).mean(),
            "token_of_absmax": np.abs(value).max(axis=1).argmax(),
        }
    }
    text = run("trace", *IDS, "--model", model).stdout
    assert all(word in text for word in ("absmax", "zeros", "model.layers.2", "lm_head"))


def test_list(run: Run, run_json: Any, model: Path) -> None:
    found = run_json("trace", "--list", "--model", model)["points"]
    assert list(found) == list(trace_points(laguna_ref.load(model).config))
    assert found["lm_head"]["shape"] == "[T, 330]"
    text = run("trace", "--list", "--point", "*.topk_ids", "--model", model).stdout
    assert "model.layers.1.mlp.topk_ids" in text
    assert "lm_head" not in text


@pytest.mark.parametrize("gating", ["per-head", "per-element"])
def test_listed_shapes_are_those_recorded(tmp_path: Path, gating: str) -> None:
    config = small_config(gating=gating)
    synthesised = laguna_ref.checkpoint.synth(config)
    laguna_ref.checkpoint.write(tmp_path / "m", config, synthesised)
    model = laguna_ref.load(tmp_path / "m")
    recorder = laguna_ref.Recorder("*")
    model([2, 3, 4, 5, 6], trace=recorder)
    for name, axes in trace_points(model.config).items():
        shape = numbered_shape(model.config, name, axes)
        assert shape.replace("T", "5") == str(list(recorder[name].shape)), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "model.layers.9"], "model.layers.9: no trace point has this name"),
        (["--out", "trace.npy"], "expected .safetensors; found .npy"),
        (["--list", "--point", "nothing"], "nothing: no trace point has this name"),
    ],
)
def test_bad_input(run: Run, model: Path, arguments: list[str], message: str) -> None:
    assert message in run("trace", *IDS, *arguments, "--model", model, code=2).stderr
