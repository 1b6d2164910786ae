"""Measured budgets kept between runs of the command line, one safetensors file each.

Those of the embedded checkpoint's goldens come with the package (``data/budgets``, remade by
``tools/make_budgets.py`` when legal variations change; the tests hold fresh legal runs against
them). All others lie in ``$XDG_CACHE_HOME/laguna_ref/budgets`` (``~/.cache`` without it). A file's
name is the hash of what was asked for and of the source that measures it, with all that it imports
from this package; any file may be removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.checkpoint.safetensors_file import DTYPE_NAMES, SafetensorsFile
from laguna_ref.checkpoint.safetensors_writer import TensorSpec, aligned, write_file
from laguna_ref.conformance.budget import DEFAULT_RUNS
from laguna_ref.conformance.precision import Precision
from laguna_ref.conformance.sources import sha256_of
from laguna_ref.errors import CheckpointError
from laguna_ref.golden.identity import canonical, identity_of
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array

COMMITTED = Path(__file__).parent.parent / "data" / "budgets"
SUFFIX = ".safetensors"
MEASURING = "laguna_ref.conformance.partial_budget"
"""The module whose imports are all that a budget depends on; it imports ``budget``."""
WAYS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("float32", {"dequant": "exact", "kv_cache": "float"}),
    ("bfloat16", {"dequant": "bf16", "kv_cache": "float"}),
)
"""Of the committed ones: a declared precision, and how the oracle that judges such a backend is
loaded."""
Measured = tuple[dict[str, Array], dict[str, Any]]
"""What ``to_arrays`` of a budget gives."""


def folder() -> Path:
    """Where budgets are kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "laguna_ref" / "budgets"


@dataclass(frozen=True)
class Name:
    """What a budget is kept under: hashes of all it depends on."""

    committed: str
    """Of the checkpoint, of how its oracle computes, and of what was asked for."""
    exact: str
    """Of the code that measures it, too."""


def name_of(
    model: Laguna, tokens: Array, positions: Array, precision: Precision, *,
    runs: int = DEFAULT_RUNS, seed: int = 0, **parts: Any,
) -> Name:  # fmt: skip
    """Of one prompt's budget; ``parts`` is what else it depends on, as JSON."""
    identity = identity_of(model.checkpoint).to_json()
    identity.pop("revision")
    whole = {
        "identity": identity,
        "dequant": model.numerics.dequant,
        "fp8_layers": [index for index, kv in enumerate(model.kv_formats) if kv.fp8],
        "tokens": np.asarray(tokens).tolist(),
        "positions": np.asarray(positions).tolist(),
        "precision": precision.to_json(),
        "runs": runs,
        "seed": seed,
        **parts,
    }
    return Name(_hash(whole), _hash(whole | {"source": sha256_of(MEASURING)}))


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def committed_file(name: Name) -> Path:
    """Where the package has it, if it has."""
    return COMMITTED / f"{name.committed[:16]}{SUFFIX}"


def kept(name: Name, measure: Callable[[], Measured]) -> Measured:
    """The budget of a name: read, or measured and written where that is possible."""
    path = folder() / f"{name.exact}{SUFFIX}"
    found = read(committed_file(name)) or read(path)
    if found is not None:
        return found
    arrays, meta = measure()
    with suppress(OSError):  # a disk that is full or not ours costs time and nothing else
        write(path, arrays, meta)
    return arrays, meta


def read(path: Path) -> Measured | None:
    """None where there is no file, or none that is whole."""
    try:
        file = SafetensorsFile(path)
        meta = json.loads(file.metadata["budget"])
        return {name: np.array(file.tensor(name)) for name in file}, meta
    except (CheckpointError, OSError, KeyError, ValueError):
        return None


def write(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Its folder, too; nothing half-written is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    specs = [TensorSpec(name, DTYPE_NAMES[a.dtype], a.shape) for name, a in held.items()]
    write_file(path, aligned(specs), held.__getitem__, {"budget": canonical(meta).decode()})
