"""docs/golden-format.md: its table has every trace point, its examples run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from laguna_ref import LagunaConfig
from laguna_ref.golden import read_cases, read_dump, read_golden
from laguna_ref.load import EMBEDDED
from laguna_ref.trace import ATTENTION_POINTS, LAYER_POINTS, SPARSE_POINTS
from tests.meta.sources import ROOT

TEXT = (ROOT / "docs" / "golden-format.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return found


def test_the_table_has_every_trace_point_and_its_shape() -> None:
    table = TEXT.split("### Trace points")[1].split("The input of layer N")[0]
    found: dict[str, str] = {}
    for line in table.splitlines():
        if line.startswith("| ") and "`" in line:
            names, shape, _ = (cell.strip() for cell in line.strip("| ").split("|", 2))
            short = [name.lstrip("…").lstrip(".") for name in re.findall(r"`([^`]+)`", names)]
            found |= dict.fromkeys(short, shape.replace("·", "*"))
    found["self_attn.v_proj"] = found.pop("v_proj")
    points = ATTENTION_POINTS | SPARSE_POINTS | LAYER_POINTS
    whole = {"model.embed_tokens", "model.norm", "lm_head", "model.layers.N"}
    layer = {name.removeprefix("model.layers.N."): shape for name, shape in found.items()}
    assert set(layer) - whole == {name for name in points if name}
    for name, shape in layer.items():
        documented = points.get(name, "")
        if name in points and not shape.startswith("as "):
            assert shape.split("]")[0] == documented.split("]")[0], name


def test_the_toml_is_a_case_file(tmp_path: Path) -> None:
    (tmp_path / "cases.toml").write_text(block("toml"))
    (case,) = read_cases(tmp_path / "cases.toml", LagunaConfig.from_file(EMBEDDED))
    assert case.chunks == (60, *[1] * 12)
    assert case.logits_at == (0, 64, 71)


def test_the_bytes_written_by_hand_are_a_dump(tmp_path: Path) -> None:
    header = json.dumps(json.loads(block("json"))).encode()
    header += b" " * (-len(header) % 8)
    arrays = np.array([2, 70], "<i8"), np.array([0, 1], "<i8"), np.ones((2, 3072), "<f4")
    path = tmp_path / "dump.safetensors"
    path.write_bytes(
        len(header).to_bytes(8, "little") + header + b"".join(a.tobytes() for a in arrays)
    )
    found = read_dump(path)
    assert found.points["lm_head"].shape == (2, 3072)
    assert found.meta == {"backend": "my-engine"}


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("python"), {})
    assert read_golden(tmp_path / "short-float.safetensors").case.name == "short-float"


def test_every_file_linked_exists() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
