"""The logits that a golden keeps: all of a small vocabulary's, of a large one a summary.

A row of 100,352 float64 logits is 0.8 MB. The summary keeps its greatest ones exactly, a seeded
sample of the other columns, and the logsumexp of the row and of what is in neither: enough to
bound the KL divergence of any other full row from it (``laguna_ref/golden/kl.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laguna_ref.exact_math import log
from laguna_ref.numerics import Array

FULL_UP_TO = 16_384
"""Words of a vocabulary whose logits are kept in full."""
TOP = 256
SAMPLE = 1024
SEED = 0
"""Of the sampled columns: the same for every golden of one vocabulary."""


@dataclass(frozen=True)
class LogitsSummary:
    """What is kept of N rows of V logits."""

    vocabulary: int
    """V."""
    top_ids: Array
    """[N, top] int64, in descending order of logit, ties to the lower id."""
    top: Array
    """[N, top], their logits."""
    columns: Array
    """[M] int64, sampled without regard to the logits, ascending; the same for every row."""
    sample: Array
    """[N, M], their logits; a column may be among the top ones too."""
    logsumexp: Array
    """[N] float64, of the whole row, in nats."""
    rest: Array
    """[N] float64, logsumexp of what is neither among the top nor sampled; -inf if nothing is."""

    def known(self, row: int) -> tuple[Array, Array]:
        """Ids and logits, [M] each, ascending by id, of all M that are known of a row."""
        ids = np.concatenate([self.top_ids[row], self.columns])
        values = np.concatenate([self.top[row], self.sample[row]])
        unique, first = np.unique(ids, return_index=True)
        return unique, values[first]


@dataclass(frozen=True)
class Logits:
    """Logits of some positions of a case: one of ``full`` and ``summary`` is there."""

    at: tuple[int, ...]
    """Indices into the case's tokens, one a row."""
    full: Array | None
    """[N, V]"""
    summary: LogitsSummary | None = None


def keep(at: tuple[int, ...], logits: Array, full_up_to: int = FULL_UP_TO) -> Logits:
    """What a golden keeps of ``logits`` [N, V], computed at positions ``at``."""
    if logits.shape[1] <= full_up_to:
        return Logits(at, logits)
    return Logits(at, None, summarise(logits))


def summarise(logits: Array, top: int = TOP, sample: int = SAMPLE) -> LogitsSummary:
    """Of rows [N, V]; equal bits for equal logits on every machine."""
    vocabulary = logits.shape[1]
    top = min(top, vocabulary)
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    columns = sampled_columns(vocabulary, sample)
    rest = np.ones(logits.shape, dtype=bool)
    np.put_along_axis(rest, ids, False, axis=-1)
    rest[:, columns] = False
    wide = logits.astype(np.float64)
    return LogitsSummary(
        vocabulary=vocabulary,
        top_ids=ids.astype(np.int64),
        top=np.take_along_axis(logits, ids, axis=-1),
        columns=columns,
        sample=logits[:, columns],
        logsumexp=logsumexp(wide),
        rest=logsumexp(np.where(rest, wide, -np.inf)),
    )


def sampled_columns(vocabulary: int, count: int, seed: int = SEED) -> Array:
    """Different column numbers, int64 [count], ascending; all of them if there are no more."""
    keys = np.random.PCG64(seed).random_raw(vocabulary)  # a stream that no version changes
    return np.sort(np.argsort(keys, kind="stable")[:count]).astype(np.int64)


def logsumexp(rows: Array) -> Array:
    """``log(sum(exp(x)))`` of each row of float64 [N, V]; -inf of rows of nothing but -inf.

    By the kernels' exponential and order of sums, whose bits no machine changes.
    """
    from laguna_ref.engines.numba_engine import computing
    from numba_kernels.rows import exp, row_sums

    greatest = rows.max(axis=-1)
    shift = np.where(np.isfinite(greatest), greatest, 0.0)
    width = -(-rows.shape[1] // 8) * 8
    result = np.full(len(rows), -np.inf)
    with computing(None):
        for at, row in enumerate(rows):  # one at a time: a row of a large vocabulary is 0.8 MB
            shifted = np.full(width, -np.inf)
            shifted[: len(row)] = row - shift[at]
            powers, total = np.empty_like(shifted), np.empty(1)
            exp(shifted, powers, work=8 * shifted.nbytes)  # exactly 0 of -inf
            row_sums(powers, 1, width, total, work=powers.nbytes)
            if total[0] > 0:
                result[at] = shift[at] + log(float(total[0]))
    return result
