"""Choosing the next token from its logits."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from laguna_ref.errors import InputError
from laguna_ref.numerics import Array
from laguna_ref.ops.activations import softmax


@dataclass(frozen=True)
class Sampling:
    """Sampling options; ``temperature`` 0 is greedy, ``top_k`` 0 and ``top_p`` 1 cut nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not _is(Real, self.temperature) or not 0 <= self.temperature < float("inf"):
            raise InputError("temperature must be 0 (greedy) or more", found=self.temperature)
        if not _is(Integral, self.top_k) or self.top_k < 0:
            raise InputError("top_k must be an integer, 0 (off) or more", found=self.top_k)
        if not _is(Real, self.top_p) or not 0 < self.top_p <= 1:
            raise InputError("top_p must be above 0 and at most 1", found=self.top_p)


def _is(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def probabilities(logits: Array, sampling: Sampling) -> Array:
    """Distribution of the next token: logits [V] -> float64 [V], summing to 1.

    In the order of Transformers' warpers: temperature, then the ``top_k`` most probable, then
    the fewest of those that together reach ``top_p`` (at least one). Equal logits keep the
    lower index. Greedy puts all on the greatest logit.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if sampling.temperature == 0:
        result = np.zeros(len(scores))
        result[int(np.argmax(scores))] = 1.0
        return result
    with np.errstate(over="ignore"):  # a tiny temperature leaves one token, not a NaN
        scores = (scores - scores.max()) / sampling.temperature
    order = np.argsort(-scores, kind="stable")
    if sampling.top_k:
        scores[order[sampling.top_k :]] = -np.inf
    if sampling.top_p < 1:
        before = np.cumsum(softmax(scores)[order]) - softmax(scores)[order]
        scores[order[before >= sampling.top_p]] = -np.inf
    return softmax(scores)


def sample(logits: Array, sampling: Sampling, generator: np.random.Generator) -> int:
    """One token id of logits [V]; equal seeds and logits give the same one on every machine."""
    cumulative = np.cumsum(probabilities(logits, sampling))
    point = generator.random() * cumulative[-1]
    return int(np.searchsorted(cumulative, point, side="right"))
