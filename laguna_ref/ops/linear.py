"""Products with a stored weight, and rows of an embedding."""

from __future__ import annotations

import numpy as np

from laguna_ref.checkpoint.formats import DenseWeight, Weight
from laguna_ref.numerics import BF16, Array, Numerics

BLOCK_BYTES = 32 * 1024 * 1024
"""Most of a weight that is held dequantised at a time (the head of XS.2 would take 822 MB)."""


def linear(x: Array, weight: Weight, numerics: Numerics) -> Array:
    """``x W^T`` with W dequantised a block of rows at a time.

    Shapes: x [T, in], weight [out, in] -> [T, out].
    Dtypes: weight as stored / sums in the type of x / out in the type of x. The order of sums
    is BLAS's own, so the last bit may differ between machines and between chunkings.
    Rounds at: weight, linear.
    Follows: torch ``nn.Linear`` without bias.
    """
    outputs, inputs = weight.shape
    out = np.empty((len(x), outputs), dtype=numerics.dtype)
    step = max(1, BLOCK_BYTES // (inputs * numerics.dtype.itemsize))
    for start in range(0, outputs, step):
        stop = min(start + step, outputs)
        block = weight_rows(weight, start, stop, numerics)
        np.matmul(x, block.T, out=out[:, start:stop])
    return numerics.round_at("linear", out)


def weight_rows(weight: Weight, start: int, stop: int, numerics: Numerics) -> Array:
    """Rows ``start`` to ``stop`` of a weight as the numerics see them, [stop - start, in]."""
    rows = weight.rows(start, stop, dtype=numerics.dtype.type, dequant=numerics.dequant)
    if isinstance(weight, DenseWeight) and weight.array.dtype != BF16:
        return numerics.round_at("weight", rows)
    return rows


def embed(tokens: Array, weight: Weight, numerics: Numerics) -> Array:
    """Rows of the embedding; no scaling.

    Shapes: tokens int64 [T], weight [V, D] -> [T, D].
    Follows: Transformers ``LagunaModel.embed_tokens``.
    """
    out = np.empty((len(tokens), weight.shape[1]), dtype=numerics.dtype)
    for index, token in enumerate(tokens.tolist()):
        out[index] = weight_rows(weight, token, token + 1, numerics)[0]
    return out
