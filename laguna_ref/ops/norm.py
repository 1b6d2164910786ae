"""RMSNorm."""

from __future__ import annotations

import numpy as np

from laguna_ref.numerics import Array, Numerics


def rms_norm(x: Array, weight: Array, eps: float, numerics: Numerics) -> Array:
    """Scale each vector to unit root mean square, then by a learned weight.

    ``x / sqrt(mean(x^2) + eps) * weight``

    Shapes: x [..., N], weight [N] -> [..., N]; N is D, or C for q_norm and k_norm.
    Rounds at: norm.normalised, norm.weighted.
    Follows: Transformers ``LagunaRMSNorm`` (the cast comes before the weight).
    Easy to get wrong: the weight is plain, not ``1 + weight`` (Gemma's convention); q_norm and
    k_norm act on each head by itself, before RoPE.
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    inverse_rms = 1 / np.sqrt(mean_square + x.dtype.type(eps))
    normalised = numerics.round_at("norm.normalised", x * inverse_rms)
    stored = numerics.round_at("weight", numerics.cast(weight))
    return numerics.round_at("norm.weighted", stored * normalised)
