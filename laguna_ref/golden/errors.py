"""What golden files, case files and dumps are refused with."""

from __future__ import annotations

from pathlib import Path

from laguna_ref.checkpoint.safetensors_file import SafetensorsFile
from laguna_ref.errors import CheckpointError, LagunaError


class GoldenError(LagunaError):
    """A golden or case file that cannot be read, or that belongs to something else."""


class DumpError(LagunaError):
    """A dump that nothing can be compared with: empty, damaged, or not one at all."""


def open_safetensors(path: Path, error: type[LagunaError]) -> SafetensorsFile:
    """The file at ``path``, which is no checkpoint: raises ``error`` where it cannot be read."""
    try:
        return SafetensorsFile(path)
    except CheckpointError as problem:
        raise error(
            problem.message, file=path, tensor=problem.tensor, expected=problem.expected,
            found=problem.found,
        ) from problem  # fmt: skip
