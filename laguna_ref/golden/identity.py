"""Which checkpoint a golden belongs to, however its files are cut and wherever they lie."""

from __future__ import annotations

import bisect
import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from laguna_ref.checkpoint import Checkpoint
from laguna_ref.golden.errors import GoldenError

BLOCKS = 4096
BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Identity:
    """Hashes of a checkpoint, in hexadecimal."""

    config_sha256: str
    """Of config.json's content, whatever its spacing and order of keys."""
    tensors_sha256: str
    """Of the tensors' index: name, type and shape of each, in order of name."""
    weights_sha256: str
    """Of a sample of the weights' bytes: all of them up to 16 MiB, else 4,096 blocks of 4 KiB at
    even steps. Another training run differs; a single weight changed by hand may not."""
    revision: str | None = None
    """The commit that a Hub cache's folder names; it says where from, and decides nothing."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in a golden file."""
        return asdict(self)

    def require(self, other: Identity, file: str) -> None:
        """Raises GoldenError, showing both values, unless ``other`` is the same checkpoint."""
        for name, what in (
            ("config_sha256", "another config"),
            ("tensors_sha256", "other tensors"),
            ("weights_sha256", "other weights"),
        ):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise GoldenError(
                    f"made from {what} than the model's", file=file, key=name,
                    expected=f"{its} (the model's)", found=mine,
                )  # fmt: skip


def identity_of(checkpoint: Checkpoint) -> Identity:
    """Reads 16 MiB of the weights at most."""
    folder = checkpoint.path.resolve()
    return Identity(
        config_sha256(checkpoint.config.raw),
        _tensors_sha256(checkpoint),
        _weights_sha256(checkpoint),
        folder.name if folder.parent.name == "snapshots" else None,
    )


def config_sha256(raw: dict[str, Any]) -> str:
    """Hash of config.json's content, whatever its spacing and order of keys."""
    return hashlib.sha256(canonical(raw)).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON of which there is only one spelling."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _tensors_sha256(checkpoint: Checkpoint) -> str:
    index = [
        [name, stored.entry.dtype, list(stored.entry.shape)]
        for name, stored in sorted(checkpoint.tensors.items())
    ]
    return hashlib.sha256(canonical(index)).hexdigest()


def _weights_sha256(checkpoint: Checkpoint) -> str:
    """Over the tensors' bytes as if they lay one after another in order of name."""
    names = sorted(checkpoint.tensors)
    ends = list(accumulate(checkpoint.tensors[name].nbytes for name in names))
    total = ends[-1] if ends else 0
    digest = hashlib.sha256(str(total).encode())

    def take(start: int, stop: int) -> None:
        at = bisect.bisect_right(ends, start)
        while start < stop:
            first = ends[at - 1] if at else 0
            raw = np.ascontiguousarray(checkpoint.tensor(names[at])).reshape(-1).view(np.uint8)
            digest.update(raw[start - first : stop - first].data)
            start, at = ends[at], at + 1

    if total <= BLOCKS * BLOCK_BYTES:
        take(0, total)
    else:
        for block in range(BLOCKS):
            start = block * (total - BLOCK_BYTES) // (BLOCKS - 1)
            take(start, start + BLOCK_BYTES)
    return digest.hexdigest()
