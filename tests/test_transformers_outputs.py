"""Our logits and layer outputs against Transformers' own, kept in ``data/transformers``.

The files were made by ``tools/make_transformers_outputs.py``; no torch is needed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

import laguna_ref
from laguna_ref import Recorder, checkpoint
from tests import tolerances

DATA = Path(__file__).parent / "data" / "transformers"
CASES = sorted(path.stem for path in DATA.glob("*.safetensors"))
Arrays = dict[str, NDArray[Any]]


def test_every_kind_of_number_is_there() -> None:
    assert CASES == ["xs2-bfloat16", "xs2-float32", "xs2-int4-int8-fp8", "xs21-int4"]


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    about, theirs = read(DATA / f"{case}.safetensors")
    tensors = checkpoint.synth(about["config"], seed=about["seed"])
    assert weights_hash(tensors) == about["weights_sha256"], (
        "synth no longer makes the weights that these outputs belong to: run "
        "tools/make_transformers_outputs.py again"
    )
    checkpoint.write(tmp_path / "model", about["config"], tensors)
    tokens = theirs.pop("tokens")
    options = about["options"] | {"engine": "numpy"}
    ours = run(tmp_path / "model", tokens, **options)
    truth = run(tmp_path / "model", tokens, **options | {"numerics": "float64"})
    for point, expected in theirs.items():
        if options["numerics"] == "bfloat16":
            noise = root_mean_square(expected - truth[point])
            found = root_mean_square(ours[point] - expected)
            assert found <= tolerances.BFLOAT16_SAME_ROUNDINGS * noise, point
        else:
            scale = np.abs(truth[point]).max()
            assert np.abs(ours[point] - expected).max() <= tolerances.FLOAT32_ERROR * scale, point
            assert np.abs(truth[point] - expected).max() <= tolerances.FLOAT32_ERROR * scale, point


def run(folder: Path, tokens: NDArray[Any], **options: Any) -> Arrays:
    recorder = Recorder("model.layers.?", "lm_head")
    laguna_ref.load(folder, **options)(tokens, trace=recorder)
    return {point: recorder[point] for point in recorder}


def read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """The header, each entry of which is JSON, and the arrays."""
    with safe_open(path, framework="numpy") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def root_mean_square(x: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def weights_hash(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names and bytes of all tensors, in order of name, as the tool takes it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
