"""Log-probabilities that a request asks for."""

from __future__ import annotations

import numpy as np

from laguna_ref.numerics import Array
from laguna_ref.server.job import Scored


def log_probabilities(logits: Array) -> Array:
    """Of one row of logits [V], in nats, float64."""
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()))


def scored(logits: Array, token: int, count: int) -> Scored:
    """The score of ``token`` and the ``count`` likeliest tokens of one row [V]; -1: all."""
    row = log_probabilities(logits)
    own = row[token]
    return Scored(token, float(own), int((row >= own).sum()), likeliest(row, count))


def likeliest(row: Array, count: int) -> tuple[tuple[int, float], ...]:
    """Ids and values of the ``count`` greatest of [V], equal ones in the order of their ids."""
    if count == 0:
        return ()
    candidates = np.arange(len(row))
    if 0 < count < len(row):
        least = np.partition(row, len(row) - count)[len(row) - count]
        candidates = np.flatnonzero(row >= least)
    order = candidates[np.argsort(-row[candidates], kind="stable")]
    return tuple((int(i), float(row[i])) for i in order[: count if count > 0 else None])
