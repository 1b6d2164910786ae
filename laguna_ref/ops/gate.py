"""The attention output gate."""

from __future__ import annotations

from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.activations import sigmoid, softplus


def gate_values(gate_logits: Array, activation: str, numerics: Numerics) -> Array:
    """``softplus(g_proj(h))``, one value per head, or per element of each head.

    Shapes: [T, H] -> [T, H], or [T, H * C] -> [T, H * C].
    Rounds at: gate.activation.
    Follows: Transformers ``LagunaAttention.forward``.
    Easy to get wrong: sigmoid in place of softplus, which the model card suggests; the gate's
    input is the normed hidden state, not the attention output.
    """
    values = softplus(gate_logits) if activation == "softplus" else sigmoid(gate_logits)
    return numerics.round_at("gate.activation", values)


def apply_gate(attention: Array, gate: Array, numerics: Numerics) -> Array:
    """Attention output times its gate, before ``o_proj``.

    Shapes: attention [T, H, C], gate [T, H] or [T, H * C] -> [T, H * C].
    Rounds at: gate.product.
    Follows: Transformers ``LagunaAttention.forward``, between attention and ``o_proj``.
    """
    tokens, heads, head_dim = attention.shape
    per_element = gate.shape[1] != heads or head_dim == 1
    gate = gate.reshape(tokens, heads, head_dim if per_element else 1)
    gated = numerics.round_at("gate.product", attention * gate)
    return gated.reshape(tokens, heads * head_dim)
