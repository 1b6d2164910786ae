"""KL divergences: of full logits, and bounds where of the reference's there is a summary."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from laguna_ref.golden.logits import LogitsSummary
from laguna_ref.numerics import Array


class KLBounds(NamedTuple):
    """KL(reference || other) in nats lies between these, [N] float64 each."""

    lower: Array
    upper: Array


def kl_divergence(reference: Array, other: Array) -> Array:
    """KL(reference || other) of logits [N, V], in nats, [N] float64; minus infinity is allowed.

    By the definition, except where the two are near: there it would be the small difference of
    large terms. With d = other - reference it is log E[exp(d - E d)] under the reference's
    distribution, which keeps its digits however small d is.
    """
    wide, compared = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    near, d = _centred_difference(wide, compared)
    divergence = np.empty(len(wide))
    divergence[near] = np.log1p(np.maximum(_mean(wide[near], np.expm1(d[near])), 0.0))
    divergence[~near] = _by_definition(wide[~near], compared[~near])
    return np.maximum(divergence, 0.0)


def _centred_difference(reference: Array, other: Array) -> tuple[Array, Array]:
    """Which rows are near each other, and d - E d, [N, V]."""
    with np.errstate(invalid="ignore"):
        d = other - reference
        d = d - _mean(reference, d)[:, None]
        # Beyond 1 nothing cancels, and exp(d) may overflow; of an infinity there is no mean.
        return np.isfinite(d).all(axis=1) & (d.max(axis=1) < 1.0), d


def _mean(logits: Array, x: Array) -> Array:
    """Of x [N, V] under the distributions of the logits, [N]."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return np.asarray(np.einsum("tv,tv->t", p, x))


def _by_definition(reference: Array, other: Array) -> Array:
    p, q = _log_softmax(reference), _log_softmax(other)
    with np.errstate(invalid="ignore"):
        terms = np.where(p == -np.inf, 0.0, np.exp(p) * (p - q))
    return np.asarray(terms.sum(axis=-1))


def kl_bounds(reference: LogitsSummary, other: Array) -> KLBounds:
    """Bounds of KL(reference || other) for other's full logits [N, V].

    Terms of known columns (the top ones and the sampled) are exact. Of the others, ``R``, the
    reference's probability together is known, m, and that none is above c, its least top one:

        lower:  m log(m / q(R))                       the log-sum inequality
        upper:  the greatest of sum p log(p / q) over 0 <= p <= c, sum p = m

    which, being convex, has its greatest value at a corner: c for as many as m allows, what is
    left for one more, and they are those with the least q.
    """
    q = _log_softmax(other)
    lower, upper = np.empty(len(q)), np.empty(len(q))
    for row in range(len(q)):
        ids, logits = reference.known(row)
        p = logits.astype(np.float64) - reference.logsumexp[row]
        exact = float(np.sum(np.exp(p) * (p - q[row, ids])))
        unknown = np.delete(q[row], ids)
        log_mass = float(reference.rest[row] - reference.logsumexp[row])
        cap = float(reference.top[row, -1] - reference.logsumexp[row])
        lower[row] = exact + _least(log_mass, unknown)
        upper[row] = exact + _greatest(log_mass, cap, unknown)
    return KLBounds(lower, upper)


def _least(log_mass: float, q: Array) -> float:
    """The log-sum inequality's bound for probabilities of mass exp(log_mass)."""
    if log_mass == -np.inf or not len(q):
        return 0.0
    return float(np.exp(log_mass) * (log_mass - _logsumexp(q)))


def _greatest(log_mass: float, log_cap: float, q: Array) -> float:
    """As much mass as is allowed on the least likely, until it is spent."""
    if log_mass == -np.inf or not len(q):
        return 0.0
    mass, cap = float(np.exp(log_mass)), float(np.exp(log_cap))
    # Never more than there are columns: then each is at its cap, and rounding is all that is left.
    full = min(int(mass / cap), len(q)) if cap > 0 else 0
    left = max(mass - full * cap, 0.0)
    least = np.sort(np.partition(q, full)[: full + 1]) if full < len(q) else np.sort(q)
    total = float(np.sum(cap * (log_cap - least[:full]))) if full else 0.0
    if left > 0 and full < len(q):
        total += left * (float(np.log(left)) - float(least[full]))
    return total


def _log_softmax(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    result: Array = wide - _logsumexp(wide)
    return result


def _logsumexp(x: Array) -> Array:
    greatest = x.max(axis=-1, keepdims=True)
    result: Array = greatest + np.log(np.exp(x - greatest).sum(axis=-1, keepdims=True))
    return result if x.ndim > 1 else result[0]
