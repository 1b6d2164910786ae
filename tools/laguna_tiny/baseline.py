"""A byte n-gram model with Witten-Bell smoothing, what the network has to beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from laguna_tiny.corpus import read

ORDER = 5  # the byte predicted and the four before it


def _keys(texts: list[bytes], order: int) -> np.ndarray:
    """Each byte with the order-1 bytes before it as one integer; a document starts after zeros."""
    row = np.frombuffer(b"".join(bytes(ORDER - 1) + text for text in texts), np.uint8)
    keys = np.zeros(len(row), np.uint64)
    for back in range(order - 1, -1, -1):
        keys = (keys << np.uint64(8)) | np.roll(row, back).astype(np.uint64)
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths + ORDER - 1)
    real = np.ones(len(row), bool)
    for back in range(ORDER - 1):
        real[ends - lengths - 1 - back] = False
    return keys[real]


def _looked_up(table: np.ndarray, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """values[i] where table[i] == key, else 0; the table is sorted."""
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[place] == keys, values[place], 0).astype(np.float64)


def probabilities(train: list[bytes], heldout: list[bytes]) -> np.ndarray:
    """Of each held-out byte: p_n = (count + kinds·p_{n-1}) / (total + kinds), p_0 = 1/256, where
    total and kinds are how many bytes, and how many different ones, followed the context."""
    found = np.full(sum(map(len, heldout)), 1 / 256)
    for order in range(1, ORDER + 1):
        grams, count = np.unique(_keys(train, order), return_counts=True)
        contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
        total = np.add.reduceat(count, first)
        kinds = np.diff(np.append(first, len(grams)))
        keys = _keys(heldout, order)
        seen = _looked_up(grams, count, keys)
        of_context = _looked_up(contexts, total, keys >> np.uint64(8))
        different = _looked_up(contexts, kinds, keys >> np.uint64(8))
        known = of_context > 0
        smoothed = (seen + different * found) / np.maximum(of_context + different, 1)
        found = np.where(known, smoothed, found)
    return found


def heldout_bits_per_byte(work: Path) -> dict[str, float]:
    """By source, trained on the network's training text."""
    train = [(document.text or "").encode() for document in read(work, "train")]
    documents = list(read(work, "heldout"))
    texts = [(document.text or "").encode() for document in documents]
    bits = -np.log2(probabilities(train, texts))
    source = np.repeat([document.source for document in documents], [len(text) for text in texts])
    groups = {str(name): source == name for name in dict.fromkeys(source)}
    groups["stdlib and its tests"] = np.char.startswith(source, "stdlib")
    groups["all"] = np.ones(len(source), bool)
    return {name: round(float(bits[chosen].mean()), 4) for name, chosen in groups.items()}
