"""Defects of rotary embedding: parameters read otherwise, and pairs put together otherwise."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from transformers.models.laguna import modeling_laguna
from transformers.models.laguna.modeling_laguna import LagunaRotaryEmbedding

from tests.peers.planted.defect import FULL, SLIDING, Defect, before, put

NEAR_AND_FAR = ("short", "far")


def _with_parameters(model: Any, undo: ExitStack, kind: str, **changes: Any) -> None:
    """The angles that Transformers computes from another config; None takes a key out."""
    config = copy.deepcopy(model.config)
    parameters = config.rope_parameters[kind] | changes
    config.rope_parameters[kind] = {k: v for k, v in parameters.items() if v is not None}
    put(undo, model.model, "rotary_emb", LagunaRotaryEmbedding(config))


def attention_factor_left_out(model: Any, undo: ExitStack) -> None:
    """``attention_factor`` is no key that the port knows: YaRN derives its own."""
    _with_parameters(model, undo, FULL, attention_factor=None)


def attention_factor_misread(model: Any, undo: ExitStack) -> None:
    """Cosine and sine of full layers are 1.2 times too large."""
    put(undo, model.model.rotary_emb, f"{FULL}_attention_scaling", 1.2)


def one_theta_for_all(model: Any, undo: ExitStack) -> None:
    """Sliding layers get the theta of the full ones."""
    theta = model.config.rope_parameters[FULL]["rope_theta"]
    _with_parameters(model, undo, SLIDING, rope_theta=theta)


def theta_10000_everywhere(model: Any, undo: ExitStack) -> None:
    """Full layers get the theta of the sliding ones."""
    theta = model.config.rope_parameters[SLIDING]["rope_theta"]
    _with_parameters(model, undo, FULL, rope_theta=theta)


def whole_heads_rotated(model: Any, undo: ExitStack) -> None:
    """``partial_rotary_factor`` of the full layers is not read."""
    _with_parameters(model, undo, FULL, partial_rotary_factor=1.0)


def a_quarter_rotated(model: Any, undo: ExitStack) -> None:
    """``partial_rotary_factor`` of the full layers is applied twice."""
    _with_parameters(model, undo, FULL, partial_rotary_factor=0.25)


def betas_exchanged(model: Any, undo: ExitStack) -> None:
    """YaRN's two betas are passed in the wrong order."""
    of = model.config.rope_parameters[FULL]
    _with_parameters(model, undo, FULL, beta_fast=of["beta_slow"], beta_slow=of["beta_fast"])


def plain_rope_on_full_layers(model: Any, undo: ExitStack) -> None:
    """``rope_type`` of the full layers is taken for ``default``."""
    _with_parameters(model, undo, FULL, rope_type="default")


def context_length_for_the_original_one(model: Any, undo: ExitStack) -> None:
    """YaRN's original context is read from ``max_position_embeddings``."""
    context = model.config.max_position_embeddings
    _with_parameters(model, undo, FULL, original_max_position_embeddings=context)


def yarn_on_every_layer(model: Any, undo: ExitStack) -> None:
    """The scaling of the full layers is applied to the sliding ones too."""
    own = ("rope_theta", "partial_rotary_factor")
    shared = {k: v for k, v in model.config.rope_parameters[FULL].items() if k not in own}
    _with_parameters(model, undo, SLIDING, **shared)


def neighbours_rotated(model: Any, undo: ExitStack) -> None:
    """Pairs are (0, 1), (2, 3), ... as in GPT-J, where Laguna pairs the two halves."""

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        pairs = cos.shape[-1] // 2
        c, s = cos[:, None, :, :pairs], sin[:, None, :, :pairs]
        even, odd = x[..., : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
        turned = torch.stack([even * c - odd * s, odd * c + even * s], dim=-1).flatten(-2)
        return torch.cat([turned, x[..., 2 * pairs :]], dim=-1)

    def apply(q: Any, k: Any, cos: Any, sin: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return rotate(q, cos, sin), rotate(k, cos, sin)

    put(undo, modeling_laguna, "apply_rotary_pos_emb", apply)


def counted_from_one(model: Any, undo: ExitStack) -> None:
    """The first token is at position 1."""
    before(undo, model.model.rotary_emb, lambda _, args: (args[0], args[1] + 1, *args[2:]))


DEFECTS = (
    Defect(attention_factor_left_out, ("rope.attention_factor_derived",)),
    Defect(attention_factor_misread, ("rope.attention_factor",)),
    Defect(one_theta_for_all, ("rope.theta_of_full_layers",)),
    Defect(theta_10000_everywhere, ("rope.theta_of_sliding_layers",)),
    Defect(whole_heads_rotated, ("rope.partial_rotary_ignored",)),
    Defect(a_quarter_rotated, ("rope.partial_rotary_halved_twice",)),
    Defect(betas_exchanged, ("rope.betas_swapped",), prompts=NEAR_AND_FAR),
    Defect(plain_rope_on_full_layers, ("rope.scaling_ignored",), prompts=NEAR_AND_FAR),
    Defect(context_length_for_the_original_one, ("rope.original_context_is_the_new_one",),
           prompts=NEAR_AND_FAR),
    Defect(yarn_on_every_layer, ("rope.yarn_on_sliding_layers",), prompts=NEAR_AND_FAR),
    Defect(neighbours_rotated, ("rope.interleaved",)),
    Defect(counted_from_one, ("rope.positions_from_one",),
           hidden="attention sees distances alone, and they are the same"),
)  # fmt: skip
