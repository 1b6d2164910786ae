"""``laguna-ref diagnose``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import laguna_ref
from laguna_ref.conformance.faults import CATALOGUE
from tests.cli.conftest import Run


def test_a_dump_is_named(run: Run, tmp_path: Path) -> None:
    model = laguna_ref.load(kv_cache="checkpoint")
    tokens = np.random.default_rng(1).integers(70, 3000, 24)
    logits = CATALOGUE["router.scaling_missing"].plant(model)(tokens)
    path = tmp_path / "dump.safetensors"
    save_file({"tokens": tokens, "positions": np.arange(24), "lm_head": logits}, path)
    done = run("diagnose", path, "--json", code=1)
    found = json.loads(done.stdout)
    assert found["verdict"] == "named"
    assert "router.scaling_missing" in [c["fault"] for c in found["causes"] if c["rank"] == 1]
    assert {"fault", "explained", "parameters", "point", "references"} <= set(found["causes"][0])


def test_a_factory_that_raises_is_one_line(run: Run) -> None:
    factory = "python:tests.conformance.factories:that_raises"
    assert "RuntimeError: no licence" in run("diagnose", factory, code=2).stderr
    error = json.loads(run("diagnose", factory, "--json", code=2).stdout)["error"]
    assert error["key"] == factory


def test_an_unknown_backend_is_one_line(run: Run) -> None:
    done = run("diagnose", "nobody", code=2)
    assert "unknown backend" in done.stderr
