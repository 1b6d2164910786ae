"""The SwiGLU block: the dense layer's, each routed expert's and the shared expert's."""

from __future__ import annotations

from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.activations import silu
from laguna_ref.ops.linear import linear
from laguna_ref.weights import MLPWeights


def mlp(x: Array, weights: MLPWeights, numerics: Numerics) -> Array:
    """``down_proj(silu(gate_proj(x)) * up_proj(x))``.

    Shapes: x [T, D] -> [T, D]; gate_proj and up_proj [F, D], down_proj [D, F].
    Rounds at: linear (three times), mlp.activation, mlp.product.
    Follows: Transformers ``LagunaMLP``; ``gate_up_proj`` of ``LagunaExperts`` holds the gate's
    rows first.
    """
    gate = linear(x, weights.gate_proj, numerics)
    up = linear(x, weights.up_proj, numerics)
    activation = numerics.round_at("mlp.activation", silu(gate))
    return linear(numerics.round_at("mlp.product", activation * up), weights.down_proj, numerics)
