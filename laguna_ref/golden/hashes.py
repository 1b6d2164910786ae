"""SHA-256 of logits: the simplest golden, for an engine whose results are the same bits everywhere.

A file of hashes is JSON: ``{"format": 1, "model_sha256": …, "cases": [{"name", "tokens",
"numerics", "kv_cache", "chunk", "sha256"}]}``. ``model_sha256`` is that of the weights' file, so
that another checkpoint is refused and not reported as different.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.golden.errors import GoldenError
from laguna_ref.json_file import read_json
from laguna_ref.load import EMBEDDED, load
from laguna_ref.numerics import Array

COMMITTED = EMBEDDED.parent / "golden" / "laguna-tiny.json"
"""Hashes of the embedded checkpoint's logits, made by ``tools/make_hashes.py``."""
FORMAT = 1


@dataclass(frozen=True)
class HashCase:
    """A prompt, how it is computed, and the hash of what comes out."""

    name: str
    tokens: tuple[int, ...]
    numerics: str
    kv_cache: str
    chunk: int
    """Tokens computed at a time."""
    sha256: str

    def recompute(self, engine: str, threads: int | None = None) -> str:
        """The hash that this machine comes to."""
        model = load(numerics=self.numerics, kv_cache=self.kv_cache, engine=engine, threads=threads)
        cache = model.new_cache()
        chunks = range(0, len(self.tokens), self.chunk)
        parts = [model(self.tokens[at : at + self.chunk], cache=cache) for at in chunks]
        return array_sha256(np.concatenate(parts))


def array_sha256(array: Array) -> str:
    """Of an array's type, its shape and its bytes, little-endian and row by row."""
    data = np.ascontiguousarray(array)  # the package runs on little-endian machines only
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode())
    digest.update(data.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def weights_sha256(folder: Path = EMBEDDED) -> str:
    """Of the embedded checkpoint's one weights file."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_hashes(path: Path = COMMITTED) -> list[HashCase]:
    """The cases of a file of hashes; raises GoldenError, also for another checkpoint's."""
    raw = read_json(path, GoldenError)
    if raw.get("format") != FORMAT:
        raise GoldenError("unknown format", file=path, expected=FORMAT, found=raw.get("format"))
    mine = weights_sha256()
    if raw.get("model_sha256") != mine:
        raise GoldenError(
            "made from another checkpoint", file=path, expected=mine, found=raw.get("model_sha256")
        )
    try:
        return [HashCase(**{**case, "tokens": tuple(case["tokens"])}) for case in raw["cases"]]
    except (KeyError, TypeError) as problem:
        raise GoldenError(f"malformed case ({problem})", file=path) from problem


def to_json(cases: list[HashCase]) -> dict[str, Any]:
    """What a file of hashes holds."""
    return {
        "format": FORMAT,
        "model_sha256": weights_sha256(),
        "cases": [asdict(case) | {"tokens": list(case.tokens)} for case in cases],
    }


def verify(
    cases: list[HashCase], engine: str, threads: int | None = None
) -> Iterator[tuple[HashCase, str]]:
    """Each case with the hash found here."""
    for case in cases:
        yield case, case.recompute(engine, threads)
