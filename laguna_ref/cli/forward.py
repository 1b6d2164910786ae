"""Running a whole prompt through the model for ``logits`` and ``trace``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laguna_ref.cli.prefill_bar import prefill_bar
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.cli.options import ModelOptions
    from laguna_ref.model import Laguna
    from laguna_ref.numerics import Array
    from laguna_ref.trace import Recorder


def logits_in_chunks(
    model: Laguna, tokens: list[int], *, last_only: bool = False, trace: Recorder | None = None
) -> Iterator[tuple[int, Array]]:
    """(first row, logits [rows, V]) chunk by chunk through a cache, as generation prefills.

    Prompts of one chunk, 512 tokens, are one call of the model. A bar on stderr shows how far
    a longer one has come.
    """
    from laguna_ref.generate import PREFILL_CHUNK

    cache = model.new_cache()
    total = len(tokens)
    with prefill_bar(model, total) as bar:
        for start in range(0, max(1, total), PREFILL_CHUNK):
            chunk = tokens[start : start + PREFILL_CHUNK]
            logits = model(chunk, cache=cache, last_only=last_only, trace=trace)
            done = start + len(chunk)
            yield done - len(logits), logits
            bar(done, total)


def file_metadata(options: ModelOptions, model: Laguna) -> dict[str, str]:
    """What produced a file of results, for the header of a safetensors file."""
    from laguna_ref.golden.identity import config_sha256

    settings = options.settings(model)
    return {
        "config_sha256": config_sha256(model.config.raw),
        "made_by": "laguna_ref",
        **{
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in settings.items()
            if key != "model"
        },
    }


def write_arrays(path: Path, arrays: dict[str, Array], metadata: dict[str, str]) -> None:
    """Writes ``arrays`` as .npy (one of them) or .safetensors; the file appears when complete."""
    import numpy as np

    from laguna_ref.checkpoint.safetensors_file import DTYPE_NAMES
    from laguna_ref.checkpoint.safetensors_writer import TensorSpec, aligned, write_file

    if path.suffix == ".npy":
        (array,) = arrays.values()
        _replace_when_complete(path, lambda file: np.save(file, array, allow_pickle=False))
        return
    specs = [
        TensorSpec(name, DTYPE_NAMES[array.dtype], array.shape) for name, array in arrays.items()
    ]
    write_file(path, aligned(specs), arrays.__getitem__, metadata)


def require_suffix(path: Path | None, *suffixes: str) -> None:
    """Raises InputError, before anything is computed, unless the name ends in one of these."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise InputError(
            "unknown kind of file", file=path, expected=" or ".join(suffixes), found=path.suffix
        )
    if not path.absolute().parent.is_dir():
        raise InputError("no such folder", file=path.absolute().parent)


def _replace_when_complete(path: Path, write: Callable[[Any], None]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
