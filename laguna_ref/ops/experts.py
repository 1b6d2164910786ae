"""The routed experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from laguna_ref.numerics import Array, Numerics
from laguna_ref.ops.mlp import mlp
from laguna_ref.weights import MLPWeights

MAX_SLOT_BYTES = 64 * 1024 * 1024
"""Most expert outputs kept before they are summed per token."""


def experts(
    x: Array, ids: Array, weights: Array, expert_weights: Sequence[MLPWeights], numerics: Numerics
) -> Array:
    """Sum over a token's chosen experts of weight times output, in top-k order.

    ``y[t] = sum_k weights[t, k] * mlp(x[t], expert_weights[ids[t, k]])``, before the routed
    scaling factor.

    Shapes: x [T, D], ids int64 [T, K], weights [T, K] -> [T, D].
    Rounds at: experts.weighted, experts.sum, and inside mlp.
    Follows: Transformers ``integrations/moe.py`` ``grouped_mm_experts_forward`` (products
    rounded one by one, then one sum in float32), not the eager loop, which rounds after every
    addition and adds in ascending expert order.
    """
    blocks = [
        _block(x[block], ids[block], weights[block], expert_weights, numerics)
        for block in blocks_of_tokens(ids, x)
    ]
    return np.concatenate(blocks)


def blocks_of_tokens(ids: Array, x: Array) -> list[slice]:
    """Stretches of tokens whose expert outputs [T, K, D] fit the limit."""
    per_token = ids.shape[1] * x.shape[1] * x.dtype.itemsize
    step = max(1, MAX_SLOT_BYTES // per_token)
    return [slice(start, start + step) for start in range(0, len(x), step)]


def _block(
    x: Array, ids: Array, weights: Array, expert_weights: Sequence[MLPWeights], numerics: Numerics
) -> Array:
    slots = np.empty((*ids.shape, x.shape[1]), dtype=x.dtype)
    for expert in np.unique(ids).tolist():
        token, place = np.nonzero(ids == expert)
        output = mlp(x[token], expert_weights[expert], numerics)
        slots[token, place] = numerics.round_at(
            "experts.weighted", output * weights[token, place][:, None]
        )
    return sum_of_slots(slots, numerics)


def sum_of_slots(slots: Array, numerics: Numerics) -> Array:
    """Expert outputs [T, K, D] added in top-k order, [T, D]. Rounds at: experts.sum."""
    total = slots[:, 0]
    for slot in range(1, slots.shape[1]):
        total = total + slots[:, slot]
    return numerics.round_at("experts.sum", total)
