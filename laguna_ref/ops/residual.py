"""Sums: of routed and shared experts, and of the residual stream with a sub-layer."""

from __future__ import annotations

from laguna_ref.numerics import Array, Numerics


def combine(routed: Array, shared: Array, scaling_factor: float, numerics: Numerics) -> Array:
    """``routed * moe_routed_scaling_factor + shared``.

    Shapes: [T, D] twice -> [T, D].
    Rounds at: experts.scaled, mlp.sum.
    Follows: Transformers ``LagunaSparseMoeBlock.forward``.
    Easy to get wrong: the shared expert is not scaled; reading ``routed_scaling_factor``, a
    key of other families, leaves the factor at 1.
    """
    scaled = numerics.round_at("experts.scaled", routed * numerics.dtype.type(scaling_factor))
    return numerics.round_at("mlp.sum", scaled + shared)


def add(residual: Array, x: Array, numerics: Numerics) -> Array:
    """``residual + x``.

    Shapes: [T, D] and [T, D] -> [T, D].
    Rounds at: residual.
    Follows: Transformers ``LagunaDecoderLayer.forward``.
    """
    return numerics.round_at("residual", residual + x)
