"""The checkpoint's tensors as the tree that the forward pass walks; names are the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from laguna_ref.checkpoint import Checkpoint
from laguna_ref.checkpoint.formats import Weight
from laguna_ref.config import LayerSpec
from laguna_ref.errors import CheckpointError
from laguna_ref.numerics import Array


@dataclass(frozen=True)
class MLPWeights:
    """A SwiGLU block's three matrices."""

    gate_proj: Weight
    """[F, D]"""
    up_proj: Weight
    """[F, D]"""
    down_proj: Weight
    """[D, F]"""


@dataclass(frozen=True)
class SparseMLPWeights:
    """A mixture-of-experts block."""

    gate: Weight
    """The router, [E, D]."""
    e_score_correction_bias: Array
    """[E], added to the scores for the choice only."""
    experts: Sequence[MLPWeights]
    shared_experts: MLPWeights


@dataclass(frozen=True)
class AttentionWeights:
    """One layer's attention."""

    q_proj: Weight
    """[H * C, D]"""
    k_proj: Weight
    """[G * C, D]"""
    v_proj: Weight
    """[G * C, D]"""
    g_proj: Weight
    """[H, D], or [H * C, D] when gated per element."""
    o_proj: Weight
    """[D, H * C]"""
    q_norm: Array
    """[C]"""
    k_norm: Array
    """[C]"""
    k_scale: np.float32
    v_scale: np.float32


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer."""

    input_layernorm: Array
    """[D]"""
    self_attn: AttentionWeights
    post_attention_layernorm: Array
    """[D]"""
    mlp: MLPWeights | SparseMLPWeights


@dataclass(frozen=True)
class ModelWeights:
    """The whole model."""

    embed_tokens: Weight
    """[V, D]"""
    layers: tuple[LayerWeights, ...]
    norm: Array
    """[D]"""
    lm_head: Weight
    """[V, D]"""


class Experts(Sequence[MLPWeights]):
    """The routed experts of one layer; each is made when it is first used, and kept.

    XS.2 has 9,984 experts of three weights each: making all the views takes longer than
    generating the first tokens.
    """

    def __init__(self, count: int, make: Callable[[int], MLPWeights]) -> None:
        self._make = make
        self._made: list[MLPWeights | None] = [None] * count

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> MLPWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MLPWeights]: ...
    def __getitem__(self, index: int | slice) -> MLPWeights | Sequence[MLPWeights]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        made = self._made[index]
        if made is None:
            made = self._made[index] = self._make(range(len(self))[index])
        return made


def read_weights(checkpoint: Checkpoint) -> ModelWeights:
    """Views of every tensor, none of them copied."""
    config = checkpoint.config
    tied = config.tie_word_embeddings
    return ModelWeights(
        embed_tokens=checkpoint.weight("model.embed_tokens"),
        layers=tuple(_read_layer(checkpoint, layer) for layer in config.layers),
        norm=checkpoint.tensor("model.norm.weight"),
        lm_head=checkpoint.weight("model.embed_tokens" if tied else "lm_head"),
    )


def read_mlp(checkpoint: Checkpoint, prefix: str) -> MLPWeights:
    """Views of the three matrices of the SwiGLU block called ``prefix``."""
    return MLPWeights(
        gate_proj=checkpoint.weight(f"{prefix}.gate_proj"),
        up_proj=checkpoint.weight(f"{prefix}.up_proj"),
        down_proj=checkpoint.weight(f"{prefix}.down_proj"),
    )


def _read_layer(checkpoint: Checkpoint, layer: LayerSpec) -> LayerWeights:
    prefix = f"model.layers.{layer.index}"
    sparse = layer.mlp == "sparse"
    return LayerWeights(
        input_layernorm=checkpoint.tensor(f"{prefix}.input_layernorm.weight"),
        self_attn=_read_attention(checkpoint, layer.index),
        post_attention_layernorm=checkpoint.tensor(f"{prefix}.post_attention_layernorm.weight"),
        mlp=(_read_sparse_mlp if sparse else read_mlp)(checkpoint, f"{prefix}.mlp"),
    )


def _read_attention(checkpoint: Checkpoint, layer: int) -> AttentionWeights:
    prefix = f"model.layers.{layer}.self_attn"
    # A layer without scales caches in units of 1, as in vLLM (quantization/kv_cache.py).
    k_scale, v_scale = checkpoint.kv_scales(layer) or (1.0, 1.0)
    return AttentionWeights(
        q_proj=checkpoint.weight(f"{prefix}.q_proj"),
        k_proj=checkpoint.weight(f"{prefix}.k_proj"),
        v_proj=checkpoint.weight(f"{prefix}.v_proj"),
        g_proj=checkpoint.weight(f"{prefix}.g_proj"),
        o_proj=checkpoint.weight(f"{prefix}.o_proj"),
        q_norm=checkpoint.tensor(f"{prefix}.q_norm.weight"),
        k_norm=checkpoint.tensor(f"{prefix}.k_norm.weight"),
        k_scale=np.float32(k_scale),
        v_scale=np.float32(v_scale),
    )


def _read_sparse_mlp(checkpoint: Checkpoint, prefix: str) -> SparseMLPWeights:
    bias = checkpoint.tensor(f"{prefix}.experts.e_score_correction_bias")
    if not np.isfinite(bias).all():
        # No later check would find it: an expert with a NaN is just never chosen.
        raise CheckpointError(
            "not finite", file=checkpoint.path, tensor=f"{prefix}.experts.e_score_correction_bias"
        )
    return SparseMLPWeights(
        gate=checkpoint.weight(f"{prefix}.gate"),
        e_score_correction_bias=bias,
        experts=Experts(
            checkpoint.config.num_experts,
            lambda expert: read_mlp(checkpoint, f"{prefix}.experts.{expert}"),
        ),
        shared_experts=read_mlp(checkpoint, f"{prefix}.shared_expert"),
    )
