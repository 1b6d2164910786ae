"""Checkpoints on disk: opening, checking, writing and synthesising them."""

from laguna_ref.checkpoint.formats import DenseWeight, PackedIntWeight, Weight
from laguna_ref.checkpoint.opening import Checkpoint
from laguna_ref.checkpoint.opening import open_checkpoint as open  # noqa: A004
from laguna_ref.checkpoint.presets import PRESETS, preset
from laguna_ref.checkpoint.synthesis import synth
from laguna_ref.checkpoint.verification import verify
from laguna_ref.checkpoint.writing import write

__all__ = [
    "PRESETS",
    "Checkpoint",
    "DenseWeight",
    "PackedIntWeight",
    "Weight",
    "open",
    "preset",
    "synth",
    "verify",
    "write",
]
