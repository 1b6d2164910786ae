"""Small checkpoints with every feature of a published one, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laguna_ref import checkpoint
from laguna_ref.checkpoint import safetensors_file, safetensors_writer

INT4_EXPERT = "model.layers.1.mlp.experts.2.down_proj"
INT8_EXPERT = "model.layers.2.mlp.experts.0.up_proj"


def small_config(**changes: Any) -> dict[str, Any]:
    """Layers 0 (dense MLP), 1 (INT4 experts) and 31 (INT8 experts) of XS.2-INT4, made small.

    The experts' 12 columns leave half a word of padding in INT4 rows.
    """
    config = checkpoint.preset("xs2-int4", layer_ids=[0, 1, 31])
    config.update(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        head_dim=8,
        num_attention_heads=4,
        num_attention_heads_per_layer=[4, 8, 8],
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=20,
        sliding_window=8,
    )
    for group in config["quantization_config"]["config_groups"].values():
        group["weights"]["group_size"] = 4
    config.update(changes)
    return config


def dense_config(**changes: Any) -> dict[str, Any]:
    """The same without quantisation."""
    config = small_config(**changes)
    del config["quantization_config"]
    return config


def write_small(path: Path, config: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write synthetic weights for ``config`` (default: ``small_config()``) and return ``path``."""
    config = small_config() if config is None else config
    checkpoint.write(path, config, checkpoint.synth(config), **options)
    return path


def read_all(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a single-file checkpoint, copied, by the name it is stored under."""
    file = safetensors_file.SafetensorsFile(path / "model.safetensors")
    return {name: np.array(file.tensor(name)) for name in file}


def rewrite(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Replace the tensors of a single-file checkpoint, whatever their names and shapes."""
    writer = safetensors_writer
    specs = [
        writer.TensorSpec(name, safetensors_file.DTYPE_NAMES[array.dtype], array.shape)
        for name, array in tensors.items()
    ]
    writer.write_file(path / "model.safetensors", specs, lambda name: tensors[name])


def edit_config(path: Path, **changes: Any) -> None:
    """Change keys of a checkpoint's config.json."""
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
