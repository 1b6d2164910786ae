"""Dequantised weights, kept between runs: the same matrix is needed hundreds of times."""

from __future__ import annotations

import numpy as np

from laguna_ref.checkpoint.formats import Weight
from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.linear import weight_rows


class Matrices:
    """Weights as numbers, [out, in]; the first ``limit_bytes`` of them asked for stay in memory."""

    def __init__(self, limit_bytes: int = 2 << 30) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._held: dict[tuple[str, np.dtype[np.generic], str, bool], Array] = {}

    def of(self, weight: Weight, numerics: Numerics) -> Array:
        """All rows of a weight as ``numerics`` see them, [out, in]."""
        rounds = "weight" in numerics.rounds
        key = (weight.name, numerics.dtype, numerics.dequant, rounds)
        if key not in self._held:
            matrix = weight_rows(weight, 0, weight.shape[0], numerics)
            if self.held_bytes + matrix.nbytes > self.limit_bytes:
                return matrix
            self._held[key] = matrix
            self.held_bytes += matrix.nbytes
        return self._held[key]
