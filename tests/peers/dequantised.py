"""A packed checkpoint dequantised by compressed-tensors itself, and written out dense."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationScheme
from numpy.typing import NDArray
from safetensors.torch import load_file

from laguna_ref import checkpoint


def write_dequantised(packed: Path, target: Path, *, exact: bool) -> Path:
    """A dense float32 folder of the same numbers; returns ``target``.

    exact: integer times scale in float32 (no rounding); otherwise compressed-tensors' own
    product in the type of the scale, bfloat16.
    """
    config = json.loads((packed / "config.json").read_text())
    groups = config.pop("quantization_config")["config_groups"]
    schemes = {
        group["targets"][0].removeprefix("re:"): QuantizationScheme.model_validate(group)
        for group in groups.values()
    }
    checkpoint.write(
        target, config | {"torch_dtype": "float32"}, _dense_tensors(packed, schemes, exact)
    )
    return target


def _dense_tensors(
    packed: Path, schemes: dict[str, QuantizationScheme], exact: bool
) -> dict[str, NDArray[Any]]:
    stored = load_file(packed / "model.safetensors")
    result = {}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if part == "weight_packed":
            scheme = next(s for pattern, s in schemes.items() if re.match(pattern, module))
            weight = dequantise(stored, module, scheme, exact=exact)
            result[f"{module}.weight"] = weight.float().numpy()
        elif part not in ("weight_scale", "weight_shape"):
            result[name] = tensor.float().numpy()
    return result


def dequantise(
    stored: dict[str, torch.Tensor], module: str, scheme: QuantizationScheme, *, exact: bool
) -> torch.Tensor:
    """One weight: float32 if ``exact``, else the type of its scale."""
    parts = {
        part: stored[f"{module}.{part}"]
        for part in ("weight_packed", "weight_scale", "weight_shape")
    }
    if not exact:
        compressor = BaseCompressor.get_value_from_registry("pack-quantized")
        return compressor.decompress(parts, scheme)["weight"]
    weights = scheme.weights
    shape = torch.Size(parts["weight_shape"].tolist())
    codes = unpack_from_int32(parts["weight_packed"], weights.num_bits, shape)
    scale = parts["weight_scale"].float().repeat_interleave(weights.group_size, dim=1)
    return codes.float() * scale


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Pearson's, of all elements."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
