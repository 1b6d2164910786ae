"""silu, softplus and sigmoid: element-wise, in the type of their input.

Easy to get wrong: the attention gate is softplus, the router sigmoid. Swapping the two still
gives fluent text for a while (llama.cpp's port notes).
"""

from __future__ import annotations

import numpy as np

from laguna_ref.numerics import Array


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, elementwise; the exponential never overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``, elementwise, the MLP's activation (config key ``hidden_act``)."""
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    """``log(1 + exp(x))`` as ``max(x, 0) + log1p(exp(-|x|))``, elementwise.

    PyTorch returns ``x`` itself above 20; in float32 that is the same number.
    """
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def softmax(x: Array) -> Array:
    """Softmax over the last axis, same shape; ``-inf`` entries come out as exactly zero."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    result: Array = e / np.sum(e, axis=-1, keepdims=True)
    return result
