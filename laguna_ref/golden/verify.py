"""Computing a golden again, and what differs: bit for bit, so that nothing has to be judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from laguna_ref.golden.errors import GoldenError
from laguna_ref.golden.golden import Golden, make
from laguna_ref.golden.golden_file import (
    SUFFIX,
    read_golden,
    results_of,
    results_sha256,
    tensors_of,
)
from laguna_ref.golden.jobs import ModelSpec
from laguna_ref.load import EMBEDDED
from laguna_ref.numerics import Array

COMMITTED_GOLDENS = EMBEDDED.parent / "golden" / "laguna-tiny"
"""Goldens of the embedded checkpoint, made by ``tools/make_goldens.py``."""


@dataclass(frozen=True)
class Difference:
    """One tensor of a golden that came out differently."""

    name: str
    elements: int
    """How many there are, and how many differ; as many as there are if the shapes do."""
    differing: int
    greatest: float | None
    """The greatest difference; None where shapes or types differ."""


@dataclass(frozen=True)
class Verified:
    """A golden file computed anew."""

    path: Path
    golden: Golden
    found: str
    """The hash of all results here; ``expected`` is the file's."""
    differences: tuple[Difference, ...]

    @property
    def expected(self) -> str:
        """The hash of all results in the file."""
        return results_sha256(self.golden)


def spec_of(golden: Golden, spec: ModelSpec) -> ModelSpec:
    """How to load the model that computed a golden: ``spec`` under the golden's own settings."""
    settings = golden.settings
    return replace(
        spec,
        numerics=settings["numerics"],
        dequant=settings["dequant"],
        engine=settings["engine"],
        kv_cache_skip_layers=tuple(settings["kv_cache_skip_layers"]),
    )


def verify_file(path: Path, spec: ModelSpec) -> Verified:
    """Computes a golden again, under its own settings.

    spec: the checkpoint and the threads; its other settings give way to the golden's.

    Raises GoldenError for a file that cannot be read or that is another checkpoint's.
    """
    golden = read_golden(path)
    spec = spec_of(golden, spec)
    if spec.engine == "replaced":
        raise GoldenError("made by an engine that is not ours to run", file=path)
    model = spec.load(golden.case.kv_cache)
    golden.require_model(model, str(path))
    again = make(
        model,
        golden.case,
        kv_cache_skip_layers=spec.kv_cache_skip_layers,
        full_logits_up_to=model.config.vocab_size if golden.logits.full is not None else 0,
    )
    return Verified(path, golden, results_sha256(again), tuple(differences(golden, again)))


def differences(expected: Golden, found: Golden) -> list[Difference]:
    """Of every result, in the file's order."""
    mine, its = results_of(expected), results_of(found)
    old, new = tensors_of(expected), tensors_of(found)
    return [
        _difference(name, old.get(name), new.get(name))
        for name in dict.fromkeys([*mine, *its])
        if mine.get(name) != its.get(name)
    ]


def golden_files(path: str | Path) -> list[Path]:
    """A golden file itself, or those of a folder by name; raises GoldenError if there is none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.glob(f"*{SUFFIX}") if not p.name.startswith("."))
    if not found:
        raise GoldenError("no golden files in this folder", file=path, expected=f"*{SUFFIX}")
    return found


def _difference(name: str, old: Array | None, new: Array | None) -> Difference:
    given = old if old is not None else new
    assert given is not None
    if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
        return Difference(name, given.size, given.size, None)
    bits = f"u{old.itemsize}"
    one, other = (np.ascontiguousarray(x).view(bits) for x in (old, new))
    with np.errstate(invalid="ignore"):
        distance = np.abs(new.astype(np.float64) - old.astype(np.float64))
    distance = distance[np.isfinite(distance)]
    greatest = float(distance.max()) if distance.size else None
    return Difference(name, old.size, int((one != other).sum()), greatest)
