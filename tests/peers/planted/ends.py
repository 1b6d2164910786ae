"""Defects at both ends of the model, of its norms, of its tokens and of its FP8 cache."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from transformers.models.laguna.modeling_laguna import LagunaRMSNorm

from tests.peers.planted.defect import Defect, attentions, overwrite, put


def _norms(model: Any) -> list[LagunaRMSNorm]:
    return [module for module in model.modules() if isinstance(module, LagunaRMSNorm)]


def embedding_shifted(model: Any, undo: ExitStack) -> None:
    """The embedding has lost its first row."""
    weight = model.model.embed_tokens.weight
    overwrite(undo, weight, weight.roll(-1, dims=0))


def embedding_for_the_head(model: Any, undo: ExitStack) -> None:
    """``tie_word_embeddings`` is taken for true."""
    put(undo, model.lm_head, "weight", model.model.embed_tokens.weight)


def no_final_norm(model: Any, undo: ExitStack) -> None:
    """The head reads the last layer."""
    put(undo, model.model.norm, "forward", lambda x: x)


def eps_of_llama(model: Any, undo: ExitStack) -> None:
    """``rms_norm_eps`` is 1e-5, not 1e-6."""
    for norm in _norms(model):
        put(undo, norm, "variance_epsilon", 1e-5)


def norms_of_gemma(model: Any, undo: ExitStack) -> None:
    """Weights of norms are taken for offsets from one."""
    for norm in _norms(model):
        overwrite(undo, norm.weight, norm.weight + 1)


def normed_in_bfloat16(model: Any, undo: ExitStack) -> None:
    """A float32 model casts normed vectors to bfloat16 before their weight."""

    def of(norm: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            mean = x.square().mean(dim=-1, keepdim=True)
            normed = x * torch.rsqrt(mean + norm.variance_epsilon)
            return norm.weight * normed.bfloat16().float()

        return forward

    for norm in _norms(model):
        put(undo, norm, "forward", of(norm))


def bos_twice(model: Any, undo: ExitStack) -> None:
    """A tokenizer puts a BOS before the template's own.

    Logits are of the tokens as they were given.
    """
    forward, bos = model.forward, model.config.bos_token_id

    def with_bos(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        output = forward(torch.nn.functional.pad(input_ids, (1, 0), value=bos), **kwargs)
        output.logits = output.logits[:, 1:]
        return output

    put(undo, model, "forward", with_bos)


def scales_exchanged(model: Any, undo: ExitStack) -> None:
    """k_scale is loaded into v_scale, and v_scale into k_scale."""
    for module in attentions(model):
        keys, values = module.k_scale.clone(), module.v_scale.clone()
        overwrite(undo, module.k_scale, values)
        overwrite(undo, module.v_scale, keys)


def scales_of_one(model: Any, undo: ExitStack) -> None:
    """The cache's scales are not in the names that the loader maps, and stay 1."""
    for module in attentions(model):
        for scale in (module.k_scale, module.v_scale):
            overwrite(undo, scale, torch.ones_like(scale))


def scales_a_layer_late(model: Any, undo: ExitStack) -> None:
    """A loader that counts from 1: each layer has the next one's scales."""
    modules = attentions(model)
    held = [(m.k_scale.clone(), m.v_scale.clone()) for m in modules]
    for module, (keys, values) in zip(modules, held[1:] + held[:1], strict=True):
        overwrite(undo, module.k_scale, keys)
        overwrite(undo, module.v_scale, values)


DEFECTS = (
    Defect(embedding_shifted, ("embedding.ids_off_by_one",)),
    Defect(embedding_for_the_head, ("head.tied",)),
    Defect(no_final_norm, ("norm.final_missing",)),
    Defect(eps_of_llama, ("norm.eps_1e_5",)),
    Defect(norms_of_gemma, ("norm.plus_one",)),
    Defect(normed_in_bfloat16, ("norm.cast_before_weight",)),
    Defect(bos_twice, ("tokens.bos_doubled",)),
    Defect(scales_exchanged, ("kv.scales_swapped",), cache="fp8"),
    Defect(scales_of_one, ("kv.scales_not_loaded",), cache="fp8"),
    Defect(scales_a_layer_late, ("kv.scales_of_next_layer",), cache="fp8"),
)
