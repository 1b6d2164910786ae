"""Looking at every value of a checkpoint: what ``inspect --verify`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint.formats import PackedIntWeight
from laguna_ref.checkpoint.formats.packed_int import padding_is_zero
from laguna_ref.checkpoint.opening import Checkpoint, open_checkpoint
from laguna_ref.errors import CheckpointError

CHUNK_ELEMENTS = 1 << 22


def verify(
    path: str | Path,
    *,
    ignore_keys: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[CheckpointError]:
    """Every fault in the values of a checkpoint, one error each; an empty list if it is sound.

    Checked are all floating-point tensors and scales for NaN and infinity, key/value scales for
    being positive, ``weight_shape`` against the weight, and the padding bits of packed rows
    for being zero. ``progress`` is called with the bytes done and in all.

    Raises ConfigError or CheckpointError when the checkpoint cannot even be opened.
    """
    checkpoint = open_checkpoint(path, ignore_keys=ignore_keys)
    findings = []
    done, total = 0, checkpoint.nbytes
    for name, stored in checkpoint.tensors.items():
        findings += list(_faults(checkpoint, name))
        done += stored.nbytes
        if progress is not None:
            progress(done, total)
    return findings


def _faults(checkpoint: Checkpoint, name: str) -> Iterator[CheckpointError]:
    rule = checkpoint.rules[name]
    try:
        if rule.part in ("packed", "scale", "shape"):
            _check_packed(checkpoint, name)
        elif rule.part == "kv_scale":
            checkpoint.kv_scales(int(rule.module.split(".")[2]))
        else:
            _check_finite(checkpoint, name)
    except CheckpointError as error:
        yield error


def _check_packed(checkpoint: Checkpoint, name: str) -> None:
    rule = checkpoint.rules[name]
    weight = checkpoint.weight(rule.module)
    assert isinstance(weight, PackedIntWeight)
    if rule.part == "scale":
        weight.check_scale()
    elif rule.part == "shape":
        weight.check_shape()
    elif not padding_is_zero(weight.packed, weight.bits, weight.shape[1]):
        raise CheckpointError(
            "bits after the last column are not zero",
            file=checkpoint.tensors[name].file.path,
            tensor=name,
        )


def _check_finite(checkpoint: Checkpoint, name: str) -> None:
    values: NDArray[Any] = checkpoint.tensor(name).reshape(-1)
    for start in range(0, values.size, CHUNK_ELEMENTS):
        bad = ~np.isfinite(values[start : start + CHUNK_ELEMENTS])
        if bad.any():
            position = start + int(np.argmax(bad))
            where = [int(i) for i in np.unravel_index(position, checkpoint.tensors[name].shape)]
            raise CheckpointError(
                f"element {where} is not finite",
                file=checkpoint.tensors[name].file.path,
                tensor=name,
                expected="finite values",
                found=str(values[position]),
            )
