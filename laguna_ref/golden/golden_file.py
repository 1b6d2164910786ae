"""Golden files: one safetensors file a case; docs/golden-format.md describes them.

Nothing of a file is believed before it agrees with its hashes: one for each tensor, in the
header, and one for the header's own entries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.checkpoint.safetensors_file import DTYPE_NAMES, SafetensorsFile
from laguna_ref.checkpoint.safetensors_writer import TensorSpec, aligned, write_file
from laguna_ref.golden.cases import Case
from laguna_ref.golden.errors import GoldenError, open_safetensors
from laguna_ref.golden.golden import Golden
from laguna_ref.golden.hashes import array_sha256
from laguna_ref.golden.identity import Identity, canonical
from laguna_ref.golden.logits import Logits, LogitsSummary
from laguna_ref.golden.routing import Routing
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array

KIND = "laguna-golden"
VERSION = 1
SUFFIX = ".safetensors"
_SUMMARY = ("top_ids", "top", "columns", "sample", "logsumexp", "rest")


def write_golden(path: str | Path, golden: Golden) -> None:
    """Writes ``golden``; under its name there is never an incomplete file. Raises OSError."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors_of(golden).items()}
    specs = [TensorSpec(name, DTYPE_NAMES[a.dtype], a.shape) for name, a in arrays.items()]
    hashes = {name: array_sha256(array) for name, array in arrays.items()}
    header: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        "case": asdict(golden.case),
        "identity": golden.identity.to_json(),
        "settings": dict(golden.settings),
        "logits": {"at": golden.logits.at} | _vocabulary(golden.logits),
        "routing": sorted(golden.routing),
        "points": list(golden.points),
        "budget": golden.budget_meta,
        "tensors_sha256": hashes,
        "results_sha256": results_sha256(golden),
    }
    header["header_sha256"] = hashlib.sha256(canonical(header)).hexdigest()
    metadata = {key: canonical(value).decode() for key, value in header.items()}
    write_file(path, aligned(specs), arrays.__getitem__, metadata, durable=True)


def read_golden(path: str | Path, model: Laguna | None = None) -> Golden:
    """The golden in a file, all hashes checked; with a ``model``, its identity too.

    Raises GoldenError for a file that is damaged, no golden, of a newer version, or of another
    checkpoint than the model's.
    """
    path = Path(path)
    file, header = _open(path)
    hashes = header["tensors_sha256"]
    for name in sorted(hashes.keys() ^ set(file)):
        raise GoldenError("header and tensors disagree", file=path, tensor=name)
    arrays = {name: file.tensor(name) for name in hashes}
    for name, array in arrays.items():
        found = array_sha256(array)
        if found != hashes[name]:
            raise GoldenError(
                "damaged: its bytes are not those that were written", file=path, tensor=name,
                expected=hashes[name], found=found,
            )  # fmt: skip
    try:
        golden = _assembled(header, arrays)
    except (KeyError, TypeError, ValueError) as problem:
        raise GoldenError(f"malformed header ({problem!r})", file=path) from problem
    if model is not None:
        golden.require_model(model, str(path))
    return golden


def tensors_of(golden: Golden) -> dict[str, Array]:
    """Every array of a golden by its name in a file; shapes as in docs/golden-format.md."""
    logits = golden.logits
    result = {
        "tokens": np.array(golden.case.tokens, dtype=np.int64),
        "positions": np.array(golden.positions, dtype=np.int64),
    }
    if logits.summary is None:
        assert logits.full is not None
        result["logits"] = logits.full
    else:
        result |= {f"logits/{part}": getattr(logits.summary, part) for part in _SUMMARY}
    for index, layer in golden.routing.items():
        for part in ("ids", "weights", "margin"):
            result[f"routing/{index}/{part}"] = getattr(layer, part)
    result |= golden.points
    return result | {f"budget/{name}": array for name, array in golden.budget.items()}


def results_of(golden: Golden) -> dict[str, str]:
    """The hash of each result, budget aside: what another machine must come to."""
    return {
        name: array_sha256(array)
        for name, array in tensors_of(golden).items()
        if not name.startswith("budget/")
    }


def results_sha256(golden: Golden) -> str:
    """One hash of all results, for a table."""
    return hashlib.sha256(canonical(results_of(golden))).hexdigest()


def _vocabulary(logits: Logits) -> dict[str, int]:
    return {} if logits.summary is None else {"vocabulary": logits.summary.vocabulary}


def _open(path: Path) -> tuple[SafetensorsFile, dict[str, Any]]:
    """The file, and the header's entries once they agree with their own hash."""
    file = open_safetensors(path, GoldenError)
    try:
        header = {key: json.loads(text) for key, text in file.metadata.items()}
    except ValueError:
        header = {}
    if header.get("kind") != KIND:
        raise GoldenError("not a golden file", file=path, expected=f'"kind" {KIND} in its header')
    if header.get("version") != VERSION:
        raise GoldenError(
            "made by a newer version of this package" if _is_newer(header) else "unknown version",
            file=path, expected=f"format version {VERSION}", found=header.get("version"),
        )  # fmt: skip
    stated = header.pop("header_sha256", None)
    found = hashlib.sha256(canonical(header)).hexdigest()
    if stated != found:
        raise GoldenError(
            "damaged: its header is not the one that was written", file=path, expected=stated,
            found=found,
        )  # fmt: skip
    return file, header


def _is_newer(header: Mapping[str, Any]) -> bool:
    version = header.get("version")
    return type(version) is int and version > VERSION


def _assembled(header: dict[str, Any], arrays: dict[str, Array]) -> Golden:
    case: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in header["case"].items()
    }
    at = tuple(header["logits"]["at"])
    if "vocabulary" in header["logits"]:
        parts = {part: arrays[f"logits/{part}"] for part in _SUMMARY}
        logits = Logits(at, None, LogitsSummary(header["logits"]["vocabulary"], **parts))
    else:
        logits = Logits(at, arrays["logits"])
    return Golden(
        case=Case(**case),
        identity=Identity(**header["identity"]),
        settings=header["settings"],
        points={name: arrays[name] for name in header["points"]},
        logits=logits,
        routing={
            index: Routing(
                *(arrays[f"routing/{index}/{part}"] for part in ("ids", "weights", "margin"))
            )
            for index in header["routing"]
        },
        budget={
            name.removeprefix("budget/"): array
            for name, array in arrays.items()
            if name.startswith("budget/")
        },
        budget_meta=header["budget"],
    )
