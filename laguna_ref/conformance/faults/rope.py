"""Faults of rotary position embedding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from laguna_ref.conformance.faults.fault import Fault, changed, rope_of, with_rope
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array, Numerics

FULL, SLIDING = "full_attention", "sliding_attention"
GITHUB = "https://github.com"


def attention_factor_derived(model: Laguna) -> Laguna:
    """The configured attention factor is ignored: 0.1 ln(factor) + 1 takes its place."""
    return with_rope(model, FULL, attention_factor=0.1 * math.log(rope_of(model, FULL).factor) + 1)


def attention_factor_twice(model: Laguna) -> Laguna:
    """The attention factor multiplies cosine and sine twice; nothing changes where it is 1."""
    return with_rope(model, FULL, attention_factor=rope_of(model, FULL).attention_factor ** 2)


def attention_factor_logged_again(model: Laguna) -> Laguna:
    """The attention factor is taken for mscale and goes through 0.1 m ln(factor) + 1 again."""
    spec = rope_of(model, FULL)
    again = 0.1 * spec.attention_factor * math.log(spec.factor) + 1
    return with_rope(model, FULL, attention_factor=again)


def theta_of_full_layers(model: Laguna) -> Laguna:
    """Sliding layers rotate with the theta of the full ones."""
    return with_rope(model, SLIDING, rope_theta=rope_of(model, FULL).rope_theta)


def theta_of_sliding_layers(model: Laguna) -> Laguna:
    """Full layers rotate with the theta of the sliding ones."""
    return with_rope(model, FULL, rope_theta=rope_of(model, SLIDING).rope_theta)


def partial_rotary_ignored(model: Laguna) -> Laguna:
    """Full layers rotate whole heads."""
    return with_rope(model, FULL, rotary_dim=model.config.head_dim)


def partial_rotary_halved_twice(model: Laguna) -> Laguna:
    """Full layers rotate half of the dimensions that they should."""
    return with_rope(model, FULL, rotary_dim=rope_of(model, FULL).rotary_dim // 2)


def betas_swapped(model: Laguna) -> Laguna:
    """YaRN's beta_fast and beta_slow are exchanged."""
    spec = rope_of(model, FULL)
    return with_rope(model, FULL, beta_fast=spec.beta_slow, beta_slow=spec.beta_fast)


def original_context_is_the_new_one(model: Laguna) -> Laguna:
    """YaRN reads max_position_embeddings for the original context length."""
    context = model.config.max_position_embeddings
    return with_rope(model, FULL, original_max_position_embeddings=context)


def scaling_ignored(model: Laguna) -> Laguna:
    """Full layers rotate without YaRN's interpolation, as if its factor were 1."""
    return with_rope(model, FULL, factor=1.0)


def yarn_on_sliding_layers(model: Laguna) -> Laguna:
    """YaRN leaks to the sliding layers: they share its parameters but for theta and width."""
    full = rope_of(model, FULL)
    shared = ("rope_type", "factor", "attention_factor", "original_max_position_embeddings",
              "beta_fast", "beta_slow", "truncate")  # fmt: skip
    return with_rope(model, SLIDING, **{name: getattr(full, name) for name in shared})


def interleaved(model: Laguna) -> Laguna:
    """Neighbouring dimensions are rotated as pairs, instead of the two halves."""

    def apply_rope(x: Array, cos: Array, sin: Array, numerics: Numerics) -> Array:
        width = 2 * cos.shape[-1]
        order = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])
        halves = x.copy()
        halves[..., :width] = x[..., order]
        turned = model.engine.apply_rope(halves, cos, sin, numerics)
        out = turned.copy()
        out[..., order] = turned[..., :width]
        return out

    return changed(model, apply_rope=apply_rope)


def positions_from_one(model: Laguna) -> Laguna:
    """Positions are counted from 1; attention itself sees only distances."""

    def rope_tables(spec: Any, positions: Array, numerics: Numerics) -> tuple[Array, Array]:
        return model.engine.rope_tables(spec, positions + 1, numerics)

    return changed(model, rope_tables=rope_tables)


_Q = "self_attn.q_rope"
FAULTS = (
    Fault("rope.attention_factor_derived", _Q, FULL, "serious", attention_factor_derived,
          (f"{GITHUB}/vllm-project/vllm/pull/46280", f"{GITHUB}/ml-explore/mlx-lm/pull/1507")),
    Fault("rope.attention_factor_twice", _Q, FULL, "serious", attention_factor_twice),
    Fault("rope.attention_factor_logged_again", _Q, FULL, "subtle", attention_factor_logged_again,
          (f"{GITHUB}/NVIDIA/TensorRT-LLM/pull/16379",)),
    Fault("rope.theta_of_full_layers", _Q, SLIDING, "serious", theta_of_full_layers),
    Fault("rope.theta_of_sliding_layers", _Q, FULL, "serious", theta_of_sliding_layers),
    Fault("rope.partial_rotary_ignored", _Q, FULL, "fatal", partial_rotary_ignored,
          (f"{GITHUB}/NVIDIA/TensorRT-LLM/pull/15110",)),
    Fault("rope.partial_rotary_halved_twice", _Q, FULL, "serious", partial_rotary_halved_twice),
    Fault("rope.betas_swapped", _Q, FULL, "serious", betas_swapped),
    Fault("rope.original_context_is_the_new_one", _Q, FULL, "serious",
          original_context_is_the_new_one),
    Fault("rope.scaling_ignored", _Q, FULL, "serious", scaling_ignored),
    Fault("rope.yarn_on_sliding_layers", _Q, SLIDING, "serious", yarn_on_sliding_layers,
          (f"{GITHUB}/ikawrakow/ik_llama.cpp/pull/1911",)),
    Fault("rope.interleaved", _Q, "all", "fatal", interleaved),
    Fault("rope.positions_from_one", _Q, "all", "subtle", positions_from_one),
)  # fmt: skip
