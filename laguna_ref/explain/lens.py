"""The logit lens: what the model would say if it stopped here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laguna_ref.model import Laguna
from laguna_ref.numerics import Array


@dataclass(frozen=True)
class Guess:
    """A token that the model might say next."""

    token: int
    logit: float
    logprob: float
    """In nats."""


def lens(model: Laguna, residual: Array) -> Array:
    """The final norm and the head, applied to a residual stream of any depth.

    Shapes: [N, D] -> logits [N, V], in the model's numerics; of the stream after the last layer
    they are the model's own logits.
    Follows: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    engine, n, w = model.engine, model.numerics, model.weights
    with engine.computing(model.threads):
        normed = engine.rms_norm(residual, w.norm, model.config.rms_norm_eps, n)
        return engine.linear(normed, w.lm_head, n)


def log_probabilities(logits: Array) -> Array:
    """Log-softmax over the last axis: [..., V] -> [..., V] in float64, nats."""
    wide = logits.astype(np.float64)
    greatest = wide.max(axis=-1, keepdims=True)
    total = np.log(np.exp(wide - greatest).sum(axis=-1, keepdims=True))
    result: Array = wide - greatest - total
    return result


def guesses(logits: Array, top: int) -> tuple[Guess, ...]:
    """The ``top`` likeliest of logits [V], the lower id first among equals."""
    logprobs = log_probabilities(logits)
    order = np.argsort(-logits.astype(np.float64), kind="stable")[:top]
    return tuple(Guess(int(i), float(logits[i]), float(logprobs[i])) for i in order)
