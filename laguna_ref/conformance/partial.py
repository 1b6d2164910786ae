"""Judging what an endpoint shows: log-probabilities of the likeliest tokens, and nothing else.

An endpoint gives, for each token of a prompt, the log-probabilities of the k likeliest next tokens
and perhaps of the one that really came next. A legal run of the oracle is looked at through the
same window, its own k likeliest and the same extra ones, so that the scales and the threshold hold
for exactly this way to look. Each statistic is linear in a small error and has its own scale:

=============  =====================================================================================
``greatest``   greatest difference of a log-probability that is shown, nats
``rms``        root mean square over the tokens of the root mean square over what is shown, nats
``kl``         root of twice the part of KL(expected || found) that is shown, nats ** 0.5. Each word
               contributes p (exp(d) - 1 - d), d the difference of log-probabilities, never less
               than zero, so that the sum over what is shown never exceeds the whole divergence.
``top1``       how far, by the oracle, the token shown first lies below the likeliest, nats
``overtaken``  how far, by the oracle, the lowest token shown that overtakes the oracle's likeliest
               lies below it, nats
``missing``    how far a token that is not shown lies, by the oracle, above the least that is: what
               stands outside of the window must be less likely than what stands in it
=============  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from laguna_ref.numerics import Array

MODE = "logprobs"
STATISTICS = ("greatest", "rms", "kl", "top1", "overtaken", "missing")


class Seen(NamedTuple):
    """The window: how many tokens are shown by their likelihood, and which beside them."""

    k: int
    extra: Array
    """bool [T, V]: shown although not among the k likeliest."""
    rows: Array
    """bool [T]: tokens of the prompt of which anything is known."""


@dataclass(frozen=True)
class View:
    """Statistics of one run looked at through a window."""

    values: Mapping[str, float]
    tokens: Mapping[str, int]
    """Where each was found; -1 for all tokens together."""
    per_token: Mapping[str, Array]
    """[T], zero where nothing is known."""


def seen_in(logprobs: Array, k: int | None = None) -> Seen:
    """The window that a backend's answer [T, V] was given through, NaN where nothing is shown.

    k: how many likeliest tokens were asked for. Unknown, it is taken to be one less than the least
    number shown of any token, since one of those may be the token that came next; that only makes
    ``missing`` a little weaker.
    """
    shown = ~np.isnan(logprobs)
    rows = np.asarray(shown.any(axis=1))
    if not rows.any():
        return Seen(0, np.zeros_like(shown), rows)
    least = int(shown[rows].sum(axis=1).min())
    k = max(1, least - 1) if k is None else min(k, least)
    return Seen(k, shown & ~_likeliest(logprobs, k), rows)


def shown_through(logprobs: Array, seen: Seen) -> Array:
    """A complete run [T, V] as the endpoint would show it: NaN for the rest."""
    shown = (_likeliest(logprobs, seen.k) | seen.extra) & seen.rows[:, None]
    return np.where(shown, logprobs, np.nan)


def view(shown: Array, expected: Array, seen: Seen) -> View:
    """Statistics of what is shown [T, V], NaN for the rest, against log-probabilities [T, V]."""
    count = len(shown)
    each = {name: np.zeros(count) for name in STATISTICS if name != "rms"}
    square = np.zeros(count)
    for token in np.flatnonzero(seen.rows):
        columns = np.flatnonzero(~np.isnan(shown[token]))
        row = _of_row(shown[token, columns], columns, expected[token], seen.k)
        square[token] = row.pop("square")
        for name, value in row.items():
            each[name][token] = value
    values = {name: float(array.max()) for name, array in each.items()}
    tokens = {name: int(array.argmax()) for name, array in each.items()}
    values["rms"] = float(np.sqrt(square[seen.rows].mean())) if seen.rows.any() else 0.0
    tokens["rms"] = -1
    return View(values, tokens, each)


def log_softmax(logits: Array) -> Array:
    """Log-probabilities of logits [T, V] in nats, float64."""
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def problem_of(logprobs: Array) -> str | None:
    """Why an array [T, V] cannot be what is shown of log-probabilities, or None."""
    finite = logprobs[~np.isnan(logprobs)]
    if not len(finite):
        return "no log-probability is known"
    if np.isposinf(finite).any() or float(finite.max()) > RESOLUTION:
        return f"a log-probability of {float(finite.max()):.4g}, expected at most 0"
    return None


RESOLUTION = 2.0**-10
"""Nats by which a log-probability may exceed 0 and still be one, rounded in bfloat16: beyond it,
what is shown are other numbers."""


def _likeliest(logprobs: Array, k: int) -> Array:
    """bool [T, V]: the k greatest of each row, ties to the lower id; NaN is less than all."""
    ranked = np.where(np.isnan(logprobs), -np.inf, logprobs)
    order = np.argsort(-ranked, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(logprobs.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return np.asarray(chosen & ~np.isnan(logprobs))


def _of_row(found: Array, columns: Array, expected: Array, k: int) -> dict[str, float]:
    """Statistics of one token: what is shown [n] of ``columns`` [n], and the whole row [V]."""
    ours = expected[columns]
    difference = _difference(found, ours)
    gain = np.expm1(np.minimum(difference, 50.0)) - difference
    kl = float(np.where(np.isfinite(gain), np.exp(ours) * gain, 0.0).sum())
    top = int(expected.argmax())
    first = int(columns[found.argmax()])
    place = np.flatnonzero(columns == top)
    overtaking = ours[found > found[place[0]]] if len(place) else ours[:0]
    least = np.sort(found)[::-1][k - 1]
    hidden = np.delete(expected, columns)
    return {
        "square": float(np.square(difference).mean()),
        "greatest": float(np.abs(difference).max()),
        "kl": float(np.sqrt(2 * max(kl, 0.0))),
        "top1": float(expected[top] - expected[first]),
        "overtaken": float(expected[top] - overtaking.min()) if len(overtaking) else 0.0,
        "missing": float(max(0.0, hidden.max() - least)) if len(hidden) else 0.0,
    }


def _difference(found: Array, expected: Array) -> Array:
    """Of log-probabilities; two that are both minus infinity do not differ."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(found == expected, 0.0, found - expected))
