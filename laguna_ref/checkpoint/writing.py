"""Writing a checkpoint in the published layout, one tensor at a time."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from laguna_ref.checkpoint.opening import INDEX_FILE, SINGLE_FILE
from laguna_ref.checkpoint.safetensors_writer import aligned, write_file
from laguna_ref.checkpoint.storage import Planned, Tensors, plan, shards
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


def write(
    path: str | Path,
    config: LagunaConfig | dict[str, Any],
    tensors: Tensors,
    *,
    max_shard_bytes: int = 5_000_000_000,
    weight_shape: bool = True,
    overwrite: bool = False,
    extra_files: Mapping[str, bytes | Path] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint folder that ``open`` and the released loaders read.

    ``tensors`` maps published names to arrays. It may be lazy: each array is asked for when
    it is written (twice, if it is quantised here) and forgotten after. A Linear that the
    config quantises is given either as ``X.weight`` in floating point, and quantised as
    compressed-tensors does, or ready-made as ``X.weight_packed`` and ``X.weight_scale``.
    Floating-point weights are stored in the config's ``torch_dtype``, the router's correction
    bias in float32, ``k_scale`` and ``v_scale`` as given ([1], bfloat16 or float32).

    Written are ``model.safetensors``, or shards of at most ``max_shard_bytes`` (if no single
    tensor is larger) with their index; config.json; the ``weight_shape`` of packed weights if
    wanted; and ``extra_files`` (name -> content, or a file to copy). The folder appears under
    its name when it is complete: an interrupted write leaves nothing there. A folder that has
    files in it is replaced only with ``overwrite``.

    Raises ConfigError or CheckpointError; OSError is turned into the latter.
    """
    target = Path(path)
    if isinstance(config, dict):
        config = LagunaConfig.from_dict(config)
    extra_files = _checked_extra_files(extra_files or {})
    _check_target(target, overwrite)
    planned = plan(config, tensors, weight_shape=weight_shape)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target, planned)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
        temporary.mkdir()
        try:
            _write_weights(temporary, planned, max_shard_bytes, progress)
            _write_json(temporary / "config.json", config.to_dict())
            for name, content in extra_files.items():
                if isinstance(content, bytes):
                    (temporary / name).write_bytes(content)
                else:
                    shutil.copyfile(content, temporary / name)
            _move_into_place(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(
            f"cannot be written: {error.strerror or error}", file=target
        ) from error


def _write_weights(
    folder: Path, planned: list[Planned], max_shard_bytes: int, progress: Progress | None
) -> None:
    total = sum(item.spec.nbytes for item in planned)
    done = 0
    runs = list(shards(planned, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, run in enumerate(runs, 1):
        name = f"model-{number:05}-of-{len(runs):05}.safetensors" if len(runs) > 1 else SINGLE_FILE
        items = {item.spec.name: item for item in run}

        def fetch(tensor: str, items: dict[str, Planned] = items) -> NDArray[Any]:
            nonlocal done
            array = items[tensor].make()
            done += array.nbytes
            if progress is not None:
                progress(done, total)
            return array

        specs = aligned([item.spec for item in run])
        write_file(folder / name, specs, fetch, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(items, name))
    if len(runs) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / INDEX_FILE, index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _checked_extra_files(files: Mapping[str, bytes | Path]) -> Mapping[str, bytes | Path]:
    for name in files:
        taken = name in ("config.json", INDEX_FILE) or name.endswith(".safetensors")
        if taken or name != os.path.basename(name) or name in ("", ".", ".."):
            raise CheckpointError(
                "bad name for an extra file", expected="a plain, free file name", found=repr(name)
            )
    return files


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise CheckpointError("exists and is not a folder", file=target)
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise CheckpointError("folder is not empty (overwrite replaces it)", file=target)


def _check_room(target: Path, planned: list[Planned]) -> None:
    """Better said before than after twenty minutes of writing."""
    needed = sum(item.spec.nbytes for item in planned)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise CheckpointError(
            "not enough room on the disk",
            file=target,
            expected=f"{needed} bytes",
            found=f"{free} bytes",
        )


def _move_into_place(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = target.parent / f"{temporary.name}.old"
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)
