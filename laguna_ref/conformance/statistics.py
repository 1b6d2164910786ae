"""How far an array of a backend is from the oracle's, one number a token.

All statistics are linear in a small error, so that floor units mean the same for each: cosine
is given as the angle, Kullback-Leibler divergence as the root of twice its value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from laguna_ref.golden.kl import kl_divergence
from laguna_ref.numerics import Array

TINY = np.finfo(np.float64).tiny
BLOCK = 1 << 18
"""Numbers held in float64 at a time: 2 MiB."""

STATISTICS = {
    "l2": "length of the difference over length of the expected vector, greatest of all tokens",
    "rms": "root mean square of l2 over the tokens",
    "greatest": "greatest difference over greatest magnitude expected, greatest of all tokens",
    "angle": "2 sin(angle / 2) between both vectors, radians when small, greatest of all tokens",
    "kl": "sqrt(2 KL(expected || found)) of the next-token distribution, nats ** 0.5",
    "top1": "how far the oracle's logit of the backend's top token lies below its greatest, over"
    " the greatest magnitude; 0 where both agree",
    "overtaken": "how far the lowest of the tokens that overtake the oracle's top token lies below"
    " it in the oracle's logits, over the greatest magnitude; 0 if its rank is the same",
    "deficit": "how far the least score chosen lies below the greatest score left out; 0 if the"
    " same experts are chosen",
    "sum": "how far the chosen experts' weights are from adding up to 1",
}


def of_vectors(found: Array, expected: Array) -> dict[str, Array]:
    """l2, greatest and angle of every token: [T, ...] twice -> float64 [T] each."""
    return _in_blocks(_of_vectors, found, expected)


def _of_vectors(found: Array, expected: Array) -> dict[str, Array]:
    f = np.asarray(found, np.float64).reshape(len(found), -1)
    e = np.asarray(expected, np.float64).reshape(len(expected), -1)
    difference = f - e
    square = np.einsum("tn,tn->t", difference, difference)
    length_f = np.sqrt(np.einsum("tn,tn->t", f, f))
    length_e = np.sqrt(np.einsum("tn,tn->t", e, e))
    longer = length_f - length_e
    sideways = np.maximum(square - longer * longer, 0.0)
    greatest = np.maximum(difference.max(axis=1), -difference.min(axis=1))
    magnitude = np.maximum(e.max(axis=1), -e.min(axis=1))
    with np.errstate(over="ignore"):  # of a vector that should be zero, any error is infinite
        return {
            "l2": np.sqrt(square) / np.maximum(length_e, TINY),
            "greatest": greatest / np.maximum(magnitude, TINY),
            "angle": np.sqrt(sideways / np.maximum(length_f * length_e, TINY)),
        }


def of_logits(found: Array, expected: Array) -> dict[str, Array]:
    """kl, top1 and overtaken of every token: logits [T, V] twice -> float64 [T] each."""
    return _in_blocks(_of_logits, found, expected)


def _in_blocks(
    of: Callable[[Array, Array], dict[str, Array]], found: Array, expected: Array
) -> dict[str, Array]:
    """A few tokens at a time: the logits of a long prompt in float64 are larger than its dump."""
    step = max(1, BLOCK * len(expected) // max(expected.size, 1))
    parts = [
        of(found[start : start + step], expected[start : start + step])
        for start in range(0, max(len(expected), 1), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_logits(found: Array, expected: Array) -> dict[str, Array]:
    f, e = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    rows = np.arange(len(e))
    ours, theirs = e.argmax(axis=1), f.argmax(axis=1)
    scale = np.maximum(np.abs(e).max(axis=1), TINY)
    overtaking = np.where(f > f[rows, ours][:, None], e, np.inf).min(axis=1)
    sunk = np.where(np.isfinite(overtaking), e[rows, ours] - overtaking, 0.0)
    return {
        "kl": np.sqrt(2 * kl_divergence(e, f)),
        "top1": (e[rows, ours] - e[rows, theirs]) / scale,
        "overtaken": sunk / scale,
    }


def ranks(found: Array, expected: Array) -> Array:
    """Place of the oracle's top token in the backend's order, 0 for the first: int64 [T]."""
    ours = np.asarray(expected).argmax(axis=1)
    rank: Array = (found > found[np.arange(len(ours)), ours][:, None]).sum(axis=1)
    return rank


def deficits(scores: Array, ids: Array) -> Array:
    """How far a choice falls short of the best by these scores [T, E], float64 [T]."""
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, ids.astype(np.int64), True, axis=1)
    least = np.where(chosen, scores, np.inf).min(axis=1)
    left_out = np.where(chosen, -np.inf, scores).max(axis=1)
    return np.asarray(np.maximum(left_out - least, 0.0))


def centred(rows: Array, known: Array) -> Array:
    """Each row less the mean of its known values; 0 where ``known`` is false, [T, V]."""
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    held = np.where(known, rows, 0.0)
    return np.where(known, held - held.sum(axis=1, keepdims=True) / count, 0.0)


def other_sets(found: Array, expected: Array) -> Array:
    """Which tokens went to other experts, in whatever order: ids [T, K] twice -> bool [T]."""
    different: Array = (np.sort(found, axis=1) != np.sort(expected, axis=1)).any(axis=1)
    return different
