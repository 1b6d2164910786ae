"""Turns the trained weights into the published folder: names, KV scales, quantisation."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import laguna_ref.checkpoint
from laguna_ref import LagunaConfig
from laguna_tiny import architecture, quantise
from laguna_tiny.dialogues import PADDING
from laguna_tiny.network import Network, Parameters, rms_norm, rotate
from laguna_tiny.training import load_checkpoint

EMBEDDED = Path(laguna_ref.__file__).parent / "data" / "laguna-tiny"
COPIED = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "README.md",
)
FP8_MAXIMUM = 448.0


def published(parameters: Parameters) -> dict[str, np.ndarray]:
    """The training names to the checkpoint's: every expert's matrices by themselves."""
    tensors = {}
    for name, value in parameters.items():
        array = value.detach().float().numpy()
        prefix, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for expert, both in enumerate(array):
                gate, up = np.split(both, 2)
                tensors[f"{prefix}.{expert}.gate_proj.weight"] = gate
                tensors[f"{prefix}.{expert}.up_proj.weight"] = up
        elif last == "down_proj":
            for expert, down in enumerate(array):
                tensors[f"{prefix}.{expert}.down_proj.weight"] = down
        else:
            tensors[name] = array
    return {
        name: array if name.endswith("e_score_correction_bias") else as_bfloat16(array)
        for name, array in tensors.items()
    }


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even."""
    return np.ascontiguousarray(array).astype(ml_dtypes.bfloat16)


@torch.no_grad()
def largest_keys_and_values(network: Network, parameters: Parameters, tokens: Tensor) -> Tensor:
    """[layers, 2]: the greatest |k| after RoPE and the greatest |v| over tokens [B, T]."""
    x = F.embedding(tokens, parameters["model.embed_tokens.weight"])
    largest = []
    for number, layer in enumerate(network.layers):
        weights = network.weights_of(parameters, number)
        h = rms_norm(x, weights["input_layernorm.weight"], layer.eps)
        k, v = (
            F.linear(h, weights[f"self_attn.{name}_proj.weight"]).unflatten(
                -1, (-1, layer.head_dim)
            )
            for name in "kv"
        )
        k = rms_norm(k, weights["self_attn.k_norm.weight"], layer.eps)
        k = rotate(k, *network.rope[layer.sliding])
        largest.append(torch.stack([k.abs().max(), v.abs().max()]))
        x, _ = network.step(x, weights, number)
    return torch.stack(largest)


def random_windows(
    rows: list[np.ndarray], rng: np.random.Generator, count: int, length: int
) -> np.ndarray:
    """[count, length], as many from every row of tokens."""
    found = [
        row[start : start + length]
        for row in rows
        for start in rng.integers(0, len(row) - length, count // len(rows))
    ]
    return np.stack(found).astype(np.int64)


def kv_scales(
    parameters: Parameters, work: Path, seed: int, tokens: int = 262_144, length: int = 2048
) -> dict[str, np.ndarray]:
    """absmax / 448 over random windows, half of Python text and half of conversations where there
    are any, as the exported weights see them."""
    network = Network(architecture.config(), length, torch.float32, compiled=False)
    with torch.no_grad():
        parameters = quantise.as_exported(parameters)
    rows = [np.load(work / "train.npz")["ids"]]
    if (work / "dialogues.npz").exists():
        ids = np.load(work / "dialogues.npz")["ids"]
        rows.append(ids[ids != PADDING])
    windows = random_windows(rows, np.random.default_rng(seed), tokens // length, length)
    largest = torch.zeros(len(network.layers), 2)
    for part in torch.from_numpy(windows).split(4):
        largest = largest.maximum(largest_keys_and_values(network, parameters, part))
    return {
        f"model.layers.{number}.self_attn.{name}_scale": as_bfloat16(
            np.array([float(largest[number, column]) / FP8_MAXIMUM], dtype=np.float32)
        )
        for number in range(len(network.layers))
        for column, name in enumerate("kv")
    }


def export(work: Path, state: Path, out: Path, seed: int) -> None:
    """Writes the whole folder, beside the files that are written by hand."""
    parameters = load_checkpoint(state)
    tensors = published(parameters) | kv_scales(parameters, work, seed)
    extra = {name: (EMBEDDED / name).read_bytes() for name in COPIED if (EMBEDDED / name).exists()}
    extra["tokenizer.json"] = (work / "tokenizer.json").read_bytes()
    config = LagunaConfig.from_dict(architecture.config())
    laguna_ref.checkpoint.write(out, config, tensors, extra_files=extra, overwrite=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size:,} bytes in {len(list(out.iterdir()))} files")
