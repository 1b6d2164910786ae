"""The checkpoint a bench runs on: given, or made up at true width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from laguna_ref import checkpoint
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import CheckpointError
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array

EMBEDDED = "laguna-tiny"
"""The preset that is no config but the checkpoint that comes with the package."""
SEED = 0


def slice_config(preset: str, layers: int | None, layer_ids: Sequence[int] | None) -> LagunaConfig:
    """A published config, or some of its layers; raises ConfigError."""
    return LagunaConfig.from_dict(
        checkpoint.preset(preset, layers, layer_ids), source=f"preset {preset}"
    )


def make(config: LagunaConfig, folder: Path, progress: Callable[[int, int], None]) -> bool:
    """Writes made-up weights into ``folder`` unless they lie there; returns whether it did.

    Raises CheckpointError for a folder with anything else in it.
    """
    if (folder / "config.json").exists():
        if LagunaConfig.from_file(folder).to_dict() == config.to_dict():
            return False
        raise CheckpointError(
            "the folder holds another model",
            file=folder,
            expected="the slice asked for, or nothing",
        )
    checkpoint.write(folder, config, checkpoint.synth(config, seed=SEED), progress=progress)
    return True


def words_of(model: Laguna) -> list[Array]:
    """The files of a checkpoint as arrays of int64, in the model's own memory map."""
    files = {stored.file.path: stored for stored in model.checkpoint.tensors.values()}
    words = []
    for stored in files.values():
        whole = stored.file.tensor(stored.stored_name)
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        flat = np.asarray(whole).reshape(-1).view(np.uint8)
        words.append(flat[: len(flat) // 8 * 8].view(np.int64))
    return words
