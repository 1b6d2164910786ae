"""From a folder to a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from laguna_ref import checkpoint
from laguna_ref.config import LagunaConfig
from laguna_ref.engines import engine_by_name
from laguna_ref.engines.reading_ahead import reading_ahead
from laguna_ref.errors import CheckpointError, InputError
from laguna_ref.model import Laguna
from laguna_ref.numerics import numerics_by_name

EMBEDDED = Path(__file__).parent / "data" / "laguna-tiny"
"""The checkpoint that comes with the package."""

KV_CACHE_MODES = ("checkpoint", "float", "fp8")


def load(
    path: str | Path | None = None,
    *,
    numerics: str = "float32",
    engine: str = "numba",
    dequant: str | None = None,
    kv_cache: str = "checkpoint",
    kv_cache_skip_layers: Iterable[int | str] = (),
    threads: int | None = None,
    ignore_config_keys: Iterable[str] = (),
) -> Laguna:
    """Opens a checkpoint; weights stay on disk, memory-mapped, until they are used.

    path: a folder, a Hub id that lies in the local Hub cache (when huggingface_hub is
        installed), or None for the embedded laguna-tiny.
    numerics: ``float32``, ``float64`` or ``bfloat16`` (``laguna_ref/numerics.py``).
    engine: ``numba``, compiled, with the same bits for any number of threads and any chunking of
        the prompt; or ``numpy``, the plain one that says what each operation is.
    dequant: ``exact`` (integer times scale; the default of float64 and float32) or ``bf16``
        (that product rounded as the released loaders do; the default of bfloat16).
    kv_cache: ``checkpoint`` (FP8 where the checkpoint declares it), ``float`` (the numerics'
        own type) or ``fp8`` (scales 1.0 where the checkpoint has none).
    kv_cache_skip_layers: layers whose cache stays float: indices, ranges such as ``"0-39"``,
        or ``"sliding_window"``, as vLLM's ``--kv-cache-dtype-skip-layers`` takes them.
    threads: most threads the model may use; None leaves NumPy's and Numba's own choice.
    ignore_config_keys: unknown keys of config.json to accept.

    Raises CheckpointError, ConfigError or InputError, each in one line.
    """
    semantics = numerics_by_name(numerics, dequant)
    operations = engine_by_name(engine)
    if isinstance(ignore_config_keys, str):
        ignore_config_keys = (ignore_config_keys,)
    opened = checkpoint.open(resolve(path), ignore_keys=ignore_config_keys)
    fp8_layers = fp8_cache_layers(opened.config, kv_cache, kv_cache_skip_layers)
    model = Laguna(opened, operations, semantics, fp8_layers, threads)
    model.engine = reading_ahead(operations, opened, model.weights)
    return model


def resolve(path: str | Path | None) -> Path:
    """The folder that ``path`` names; raises CheckpointError."""
    if path is None:
        return EMBEDDED
    folder = Path(path)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return folder
    try:
        return Path(snapshot_download(str(path), local_files_only=True))
    except Exception as problem:
        raise CheckpointError(
            "neither a folder nor a model in the local Hub cache", file=str(path)
        ) from problem


def fp8_cache_layers(
    config: LagunaConfig, kv_cache: str, skip_layers: Iterable[int | str] = ()
) -> tuple[bool, ...]:
    """Whether each layer's keys and values are cached as FP8; raises InputError."""
    if kv_cache not in KV_CACHE_MODES:
        raise InputError("unknown kv_cache", expected=" or ".join(KV_CACHE_MODES), found=kv_cache)
    fp8 = kv_cache == "fp8" or (kv_cache == "checkpoint" and config.kv_cache_fp8)
    skipped = _layer_indices(config, skip_layers)
    return tuple(fp8 and layer.index not in skipped for layer in config.layers)


def _layer_indices(config: LagunaConfig, entries: Iterable[int | str]) -> set[int]:
    result: set[int] = set()
    for entry in [entries] if isinstance(entries, int | str) else entries:
        for part in str(entry).split(","):
            part = part.strip()
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
            if part == "sliding_window":
                result |= {layer.index for layer in config.layers if layer.window is not None}
            elif match and int(match[1]) <= int(match[2] or match[1]) < len(config.layers):
                result |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
            else:
                raise InputError(
                    "cannot skip these layers' cache type",
                    expected=f"indices 0 to {len(config.layers) - 1}, ranges or sliding_window",
                    found=part,
                )
    return result
