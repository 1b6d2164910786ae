"""What the pages suppose to lie in the reader's folder: a checkpoint, a port, a dump."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save

import laguna_ref
from laguna_ref.golden import read_golden
from laguna_ref.load import EMBEDDED

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "laguna_ref" / "data" / "golden" / "laguna-tiny" / "short-float.safetensors"

PORT = '''\
"""A port: the plain engine, which is not the one that judges."""

import laguna_ref


class Port:
    name, capabilities = "my port", ("trace",)
    oracle = {"kv_cache": "float"}

    def __init__(self, folder):
        self.model = laguna_ref.load(folder, engine="numpy", kv_cache="float")

    def logits(self, tokens):
        return self.model(tokens)

    def trace(self, tokens, points):
        recorder = laguna_ref.Recorder(*points)
        self.model(tokens, trace=recorder)
        return {name: recorder[name] for name in recorder}
'''


def prepare(folder: Path) -> None:
    """All of it, in an empty folder."""
    (folder / "path" / "to").mkdir(parents=True)
    for name in ("path/to/checkpoint", "FOLDER"):
        (folder / name).symlink_to(EMBEDDED, target_is_directory=True)
    (folder / "mymodule.py").write_text(PORT)
    (folder / "dump.safetensors").write_bytes(dump())


@cache
def dump() -> bytes:
    """What the plain engine computes for the case short-float."""
    golden = read_golden(GOLDEN)
    model = laguna_ref.load(engine="numpy", kv_cache="float")
    recorder = laguna_ref.Recorder("*")
    tokens = np.array(golden.case.tokens, np.int64)
    model(tokens, trace=recorder)
    points = {name: np.ascontiguousarray(recorder[name]) for name in recorder}
    return save({"tokens": tokens, "positions": np.arange(len(tokens)), **points})
