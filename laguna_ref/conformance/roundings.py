"""Numerics that round at other points than the released implementation, or another way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from laguna_ref.numerics import ROUNDING_POINTS, Array, Numerics, round_to_bf16


@dataclass(frozen=True)
class StochasticNumerics(Numerics):
    """Rounds up or down at random, each with the chance that keeps the mean."""

    random: np.random.Generator = field(default_factory=np.random.default_rng)

    def round_at(self, point: str, x: Array) -> Array:
        """One of the two neighbouring bfloat16 numbers, if this numerics rounds at ``point``."""
        if point not in ROUNDING_POINTS:
            raise KeyError(point)
        if point not in self.rounds:
            return x
        if point == "weight":  # a weight is rounded once, when it is loaded
            return round_to_bf16(x)
        return round_stochastically(x, self.random)


def round_stochastically(x: Array, random: np.random.Generator) -> Array:
    """``x`` in bfloat16: 16 random bits are added below the last one kept, the rest cut off."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    noise = random.integers(0, 1 << 16, bits.shape, dtype=np.uint32)
    finite = np.isfinite(x)
    rounded = np.where(finite, (bits + noise) & np.uint32(0xFFFF0000), bits)
    return rounded.view(np.float32).astype(x.dtype)
