"""What the numbers are: float64, float32 or bfloat16 semantics.

Every place where the released bfloat16 implementation rounds is a named point, and every
rounding is a call of ``round_at`` with that name: ``grep round_at`` lists them all, and a
variation of the numerics is a different set of names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from laguna_ref.errors import InputError

Array = NDArray[Any]
Dequant = Literal["exact", "bf16"]

BF16 = np.dtype(ml_dtypes.bfloat16)

ROUNDING_POINTS = {
    "weight": "a stored float32 or float16 weight, loaded as bfloat16",
    "linear": "output of every matrix product with a weight",
    "norm.normalised": "x / rms(x), before the norm's weight",
    "norm.weighted": "after the norm's weight",
    "rope.table": "cosine and sine, attention factor included",
    "rope.product": "x * cos and rotate_half(x) * sin, each",
    "rope.sum": "their sum",
    "kv_cache.read": "an FP8 key or value after its scale",
    "attention.scores": "q k^T",
    "attention.scaled": "scores * head_dim ** -0.5",
    "attention.probabilities": "softmax, computed in float32",
    "attention.output": "probabilities times values",
    "gate.activation": "softplus of the gate's logits, computed in float32",
    "gate.product": "attention output times gate",
    "mlp.activation": "silu of the gate projection, computed in float32",
    "mlp.product": "activation times up projection",
    "router.bias": "e_score_correction_bias, held in the model's type",
    "router.weights": "normalised weights of the chosen experts",
    "experts.weighted": "one expert's output times its weight",
    "experts.sum": "sum over the chosen, in top-k order in float32",
    "experts.scaled": "routed sum times moe_routed_scaling_factor",
    "mlp.sum": "routed plus shared experts",
    "residual": "residual stream plus a sub-layer's output",
}
"""Where Transformers 5.23 rounds to bfloat16 (models/laguna/modeling_laguna.py, eager attention,
grouped_mm experts)."""


@dataclass(frozen=True)
class Numerics:
    """The type activations are held and summed in, and the points at which they are rounded."""

    name: str
    dtype: np.dtype[Any]
    """Type of activations and of every sum: float64 or float32."""
    cache_dtype: np.dtype[Any]
    """Type of a float key/value cache."""
    dequant: Dequant
    """``exact``: integer times scale; ``bf16``: that product rounded, as released loaders do."""
    rounds: frozenset[str] = frozenset()

    def round_at(self, point: str, x: Array) -> Array:
        """``x``, elementwise rounded to bfloat16 if this numerics rounds at ``point``.

        Raises KeyError for a point that is not in ``ROUNDING_POINTS``.
        """
        if point not in ROUNDING_POINTS:
            raise KeyError(point)
        return round_to_bf16(x) if point in self.rounds else x

    def cast(self, x: Array) -> Array:
        """``x``, same shape, in the type activations are held in."""
        return x.astype(self.dtype, copy=False)


def round_to_bf16(x: Array) -> Array:
    """Nearest bfloat16, elementwise, ties to even, returned in the type of ``x``."""
    return x.astype(BF16).astype(x.dtype)


FLOAT64 = Numerics("float64", np.dtype(np.float64), np.dtype(np.float64), "exact")
FLOAT32 = Numerics("float32", np.dtype(np.float32), np.dtype(np.float32), "exact")
BFLOAT16 = Numerics("bfloat16", np.dtype(np.float32), BF16, "bf16", frozenset(ROUNDING_POINTS))

NUMERICS = {numerics.name: numerics for numerics in (FLOAT64, FLOAT32, BFLOAT16)}
DEQUANT = ("exact", "bf16")


def numerics_by_name(name: str, dequant: str | None = None) -> Numerics:
    """One of the three numerics; ``dequant`` None takes its own choice. Raises InputError."""
    if name not in NUMERICS:
        raise InputError("unknown numerics", expected=" or ".join(NUMERICS), found=name)
    if dequant is None:
        return NUMERICS[name]
    if dequant not in DEQUANT:
        raise InputError("unknown dequant", expected=" or ".join(DEQUANT), found=dequant)
    return replace(NUMERICS[name], dequant=cast(Dequant, dequant))
