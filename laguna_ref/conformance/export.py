"""A checkpoint as dense weights, for engines that cannot read packed ones, or read them wrongly.

A float32 export holds the exact weights (an integer times its bfloat16 scale is exact in float32),
so whoever runs it is judged by the oracle of the original with ``dequant="exact"``. A bfloat16
export holds that product rounded as the released loaders round it: ``dequant="bf16"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.checkpoint import Checkpoint, write
from laguna_ref.numerics import Array

DEQUANT = {"float32": "exact", "bfloat16": "bf16"}
"""Types of an export, and which dequantisation of the original it holds."""
NOT_EXPORTED = ("scale", "shape", "kv_scale")


def export(opened: Checkpoint, target: Path, dtype: str = "float32") -> Path:
    """Writes the folder ``target`` in the published layout, every weight dense; returns it.

    The config is the original's with another ``torch_dtype`` and without ``quantization_config``.
    The scales of an FP8 cache are left out with what declares it, so the export has a float cache.
    One tensor is held in memory at a time.

    dtype: ``float32`` or ``bfloat16``. Raises CheckpointError, also for a disk without room.
    """
    write(target, dense_config(opened, dtype), _DenseTensors(opened, DEQUANT[dtype]))
    return target


def is_quantised(opened: Checkpoint) -> bool:
    """Whether an export says less than the folder: packed weights, or an FP8 cache declared."""
    return opened.config.to_dict().get("quantization_config") is not None


def dense_config(opened: Checkpoint, dtype: str) -> dict[str, Any]:
    """The config.json of an export."""
    raw = opened.config.to_dict()
    left_out = ("quantization_config", "torch_dtype", "dtype")
    return {key: value for key, value in raw.items() if key not in left_out} | {
        "torch_dtype": dtype
    }


class _DenseTensors(Mapping[str, Array]):
    """The tensors of an export by published name; each is made when it is asked for."""

    def __init__(self, opened: Checkpoint, dequant: str) -> None:
        self._opened, self._dequant = opened, dequant
        self._sources = {
            f"{rule.module}.weight" if rule.part == "packed" else rule.name: rule
            for rule in opened.rules.values()
            if rule.part not in NOT_EXPORTED
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> Array:
        rule = self._sources[name]
        if rule.part != "packed":
            return self._opened.tensor(rule.name)
        return self._opened.weight(rule.module).rows(dtype=np.float32, dequant=self._dequant)
