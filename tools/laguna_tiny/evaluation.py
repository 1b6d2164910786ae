"""Held-out bits per byte, expert load and sample continuations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

import laguna_ref
from laguna_tiny import architecture, quantise
from laguna_tiny.network import Network
from laguna_tiny.training import load_checkpoint

Logits = Callable[[np.ndarray], np.ndarray]  # tokens [T] -> [T, V]
WINDOW = 2048
STACK = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
"""
COUNT = """def count_words(text):
    counts = {}
    for word in text.split():
"""
PROMPTS = (
    "def __repr__(self):", "for key, value in sorted(self.", "def read(self", STACK, COUNT,
    "def main():",
)  # fmt: skip


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Sum over tokens, in bits."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=1)
    normaliser = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    return float((normaliser - logits[np.arange(len(targets)), targets]).sum()) / math.log(2)


def bits_per_byte(logits: Logits, work: Path) -> dict[str, float]:
    """By source. Documents are cut in windows; every token but the first is predicted once."""
    data = np.load(work / "heldout.npz")
    bits: dict[str, float] = {}
    size: dict[str, int] = {}
    for number, source in enumerate(data["source"]):
        name = str(data["names"][source])
        ids = data["ids"][data["starts"][number] : data["starts"][number + 1]].astype(np.int64)
        for start in range(0, len(ids) - 1, WINDOW):
            window = ids[start : start + WINDOW + 1]
            bits[name] = bits.get(name, 0.0) + cross_entropy(logits(window[:-1]), window[1:])
        size[name] = size.get(name, 0) + int(data["bytes"][number])
    groups = {name: [name] for name in bits}
    groups["stdlib and its tests"] = [name for name in bits if name.startswith("stdlib")]
    groups["all"] = list(bits)
    return {
        group: round(sum(bits[name] for name in names) / sum(size[name] for name in names), 4)
        for group, names in groups.items()
    }


def torch_logits(state: Path, exported: bool) -> Logits:
    """The trained float weights, or the values that they have after export (float KV cache)."""
    parameters = load_checkpoint(state)
    network = Network(architecture.config(), WINDOW, torch.float32, compiled=False)
    with torch.no_grad():
        parameters = quantise.as_exported(parameters) if exported else parameters

    def logits(tokens: np.ndarray) -> np.ndarray:
        padded = torch.zeros(1, WINDOW, dtype=torch.int64)
        padded[0, : len(tokens)] = torch.from_numpy(tokens)
        with torch.no_grad():
            return network.logits(parameters, padded)[0, : len(tokens)].numpy()

    return logits


def expert_load(model: laguna_ref.Laguna, work: Path, windows: int = 16) -> dict[str, Any]:
    """Each layer's share of held-out tokens by expert, relative to an equal share."""
    ids = np.load(work / "heldout.npz")["ids"].astype(np.int64)
    starts = np.linspace(0, len(ids) - WINDOW, windows).astype(int)
    experts = architecture.config()["num_experts"]
    counts: dict[str, np.ndarray] = {}
    for start in starts:
        recorder = laguna_ref.Recorder("model.layers.*.mlp.topk_ids")
        model(ids[start : start + WINDOW], trace=recorder, last_only=True)
        for number in range(1, architecture.LAYERS):
            chosen = recorder[f"model.layers.{number}.mlp.topk_ids"].astype(int)
            found = np.bincount(chosen.ravel(), minlength=experts)
            counts[f"layer {number}"] = counts.get(f"layer {number}", 0) + found
    return {
        name: {
            "least": round(float(count.min() / count.mean()), 2),
            "greatest": round(float(count.max() / count.mean()), 2),
        }
        for name, count in counts.items()
    }


def continuations(model: laguna_ref.Laguna, tokenizer: Tokenizer, length: int) -> dict[str, str]:
    """Greedy."""
    found = {}
    for prompt in PROMPTS:
        ids = [2, *tokenizer.encode(prompt).ids]
        new = laguna_ref.generate(model, ids, max_tokens=length, temperature=0.0)
        found[prompt] = tokenizer.decode(list(new))
    return found


def evaluate(work: Path, state: Path, folder: Path | None) -> dict[str, Any]:
    """With a folder, what users get, through laguna_ref; without one, the training state."""
    if folder is None:
        return {
            "float": bits_per_byte(torch_logits(state, exported=False), work),
            "as exported": bits_per_byte(torch_logits(state, exported=True), work),
        }
    model = laguna_ref.load(folder, numerics="float32", engine="numba")
    return {
        "bits per byte": bits_per_byte(model, work),
        "expert load": expert_load(model, work),
        "greedy": continuations(model, Tokenizer.from_file(str(folder / "tokenizer.json")), 60),
    }
