"""The folder that vLLM is given: the checkpoint itself, or a dense copy that keeps its cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.checkpoint import Checkpoint
from laguna_ref.checkpoint import open as open_folder
from laguna_ref.checkpoint.opening import INDEX_FILE, SINGLE_FILE
from laguna_ref.checkpoint.safetensors_writer import TensorSpec, write_file
from laguna_ref.conformance.adapters.vllm_backend import Settings
from laguna_ref.conformance.export import export, is_quantised
from laguna_ref.numerics import Array

WEIGHTS, SCALES = "weights.safetensors", "kv_scales.safetensors"
"""Files of a copy that keeps its cache."""


def source(opened: Checkpoint, settings: Settings, temporary: Path) -> Path:
    """The folder to load: the checkpoint's own, unless it is quantised and is to be dense.

    A dense copy declares an FP8 cache, and holds its scales, where the original does. Raises
    CheckpointError, also for a disk without room.
    """
    if settings.packed or not is_quantised(opened):
        return opened.path
    copy = export(opened, temporary / "dense", settings.dtype)
    if has_fp8_cache(opened, settings):
        _declare_cache(copy, opened)
    return copy


def has_fp8_cache(opened: Checkpoint, settings: Settings) -> bool:
    """Whether vLLM is asked for keys and values in FP8."""
    return opened.config.kv_cache_fp8 and not settings.float_cache


def _declare_cache(copy: Path, opened: Checkpoint) -> None:
    """Adds to an export what it leaves out of the original: scheme and scales of the cache."""
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    scheme = opened.config.to_dict()["quantization_config"]["kv_cache_scheme"]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "config_groups": {},
        "ignore": [],
        "kv_cache_scheme": scheme,
        "quantization_status": "frozen",
    }
    files = {name: stored.file.path.name for name, stored in open_folder(copy).tensors.items()}
    if (copy / SINGLE_FILE).exists():  # what stands beside a single file is no part of it
        (copy / SINGLE_FILE).rename(copy / WEIGHTS)
        files = dict.fromkeys(files, WEIGHTS)
    scales = _scales(opened)
    write_file(
        copy / SCALES, [TensorSpec(name, "F32", (1,)) for name in scales], scales.__getitem__
    )
    _write_json(copy / INDEX_FILE, {"weight_map": files | dict.fromkeys(scales, SCALES)})
    _write_json(copy / "config.json", config)


def _scales(opened: Checkpoint) -> dict[str, Array]:
    """Scales [1] of the layers that have them, by published name."""
    found = {}
    for layer in range(len(opened.config.layers)):
        pair = opened.kv_scales(layer)
        if pair is not None:
            for name, value in zip(("k_scale", "v_scale"), pair, strict=True):
                key = f"model.layers.{layer}.self_attn.{name}"
                found[key] = np.array([value], np.float32)
    return found


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
