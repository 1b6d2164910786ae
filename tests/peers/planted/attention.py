"""Defects of attention and its gate: what a query sees, how heads pair up, norms of heads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from transformers.models.laguna import modeling_laguna

from tests.peers.planted.defect import (
    FULL,
    Defect,
    attentions,
    before,
    put,
    remembered,
)

BEYOND = ("beyond the window",)
Gated = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""``(module, heads [1, T, H, C], hidden [1, T, D]) -> [1, T, H * C]``, for o_proj."""


def window_of_63(model: Any, undo: ExitStack) -> None:
    """63 keys are visible where 64 are configured."""
    put(undo, model.config, "sliding_window", model.config.sliding_window - 1)


def window_of_65(model: Any, undo: ExitStack) -> None:
    """64 earlier keys are visible, and the own one comes on top."""
    put(undo, model.config, "sliding_window", model.config.sliding_window + 1)


def window_never_closes(model: Any, undo: ExitStack) -> None:
    """Sliding layers are given the whole prompt."""
    put(undo, model.config, "sliding_window", model.config.max_position_embeddings)


def window_for_the_whole_model(model: Any, undo: ExitStack) -> None:
    """``sliding_window`` is read once for all layers: full ones get it too."""
    window = model.config.sliding_window

    def narrow(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"]
        at = torch.arange(mask.shape[-1])
        far = at[:, None] - at >= window
        return args, kwargs | {"attention_mask": mask.masked_fill(far, torch.finfo(mask.dtype).min)}

    for module in attentions(model, FULL):
        undo.callback(module.register_forward_pre_hook(narrow, with_kwargs=True).remove)


def scores_as_they_are(model: Any, undo: ExitStack) -> None:
    """Scores are not divided by the root of the head's width."""
    for module in attentions(model):
        put(undo, module, "scaling", 1.0)


def scaled_by_twice_the_width(model: Any, undo: ExitStack) -> None:
    """Scores are divided by the root of 2 head_dim."""
    for module in attentions(model):
        put(undo, module, "scaling", (2 * module.head_dim) ** -0.5)


def heads_dealt_out(model: Any, undo: ExitStack) -> None:
    """Query heads are dealt to key/value heads in turn (``repeat`` for ``repeat_interleave``)."""
    put(undo, modeling_laguna, "repeat_kv", lambda x, times: x.repeat(1, times, 1, 1))


def planned_for_six_heads(model: Any, undo: ExitStack) -> None:
    """A kernel is planned with the full layers' head count: the others' last heads stay zero."""
    attend, planned = modeling_laguna.eager_attention_forward, attentions(model, FULL)[0].num_heads

    def attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        output, probabilities = attend(*args, **kwargs)
        output[:, :, planned:] = 0  # [1, T, heads, C]
        return output, probabilities

    put(undo, modeling_laguna, "eager_attention_forward", attention)


def one_more_in_the_softmax(model: Any, undo: ExitStack) -> None:
    """The softmax is softmax1, with a 1 beside the sum of exponentials."""
    attend = modeling_laguna.eager_attention_forward

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:  # fmt: skip
        output, probabilities = attend(module, query, key, value, mask, **kwargs)
        keys = modeling_laguna.repeat_kv(key, module.num_key_value_groups)
        scores = query @ keys.transpose(2, 3) * kwargs["scaling"] + mask
        kept = torch.sigmoid(scores.logsumexp(dim=-1))  # z / (z + 1)
        return output * kept.transpose(1, 2)[..., None], probabilities

    put(undo, modeling_laguna, "eager_attention_forward", attention)


def no_norms_of_heads(model: Any, undo: ExitStack) -> None:
    """q_norm and k_norm do nothing."""
    for module in attentions(model):
        for norm in (module.q_norm, module.k_norm):
            put(undo, norm, "forward", lambda x: x)


def norms_over_all_heads(model: Any, undo: ExitStack) -> None:
    """q_norm and k_norm are of the whole projection, as in OLMo 2."""

    def over_all(norm: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:  # [1, T, heads, C]
            mean = x.square().mean(dim=(-2, -1), keepdim=True)
            return norm.weight * x * torch.rsqrt(mean + norm.variance_epsilon)

        return forward

    for module in attentions(model):
        for norm in (module.q_norm, module.k_norm):
            put(undo, norm, "forward", over_all(norm))


def gate_of_the_model_card(model: Any, undo: ExitStack) -> None:
    """Sigmoid for softplus."""
    put(undo, torch.nn.functional, "softplus", torch.sigmoid)


def rewritten(model: Any, undo: ExitStack, gated: Gated, *, norms_first: bool = True) -> None:
    """``LagunaAttention.forward`` once more, as somebody else would write it."""

    def of(module: Any) -> Any:
        def forward(
            hidden_states: torch.Tensor, position_embeddings: Any, attention_mask: Any, **_: Any
        ) -> tuple[torch.Tensor, Any]:  # fmt: skip
            shape = (*hidden_states.shape[:-1], -1, module.head_dim)
            q, k, v = (
                project(hidden_states).view(shape)
                for project in (module.q_proj, module.k_proj, module.v_proj)
            )
            if norms_first:
                q, k = module.q_norm(q), module.k_norm(k)
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            q, k = modeling_laguna.apply_rotary_pos_emb(q, k, *position_embeddings)
            if not norms_first:  # norms are of [1, T, heads, C]
                q = module.q_norm(q.transpose(1, 2)).transpose(1, 2)
                k = module.k_norm(k.transpose(1, 2)).transpose(1, 2)
            heads, probabilities = modeling_laguna.eager_attention_forward(
                module, q, k, v, attention_mask, scaling=module.scaling
            )
            return module.o_proj(gated(module, heads, hidden_states)), probabilities

        return forward

    for module in attentions(model):
        put(undo, module, "forward", of(module))


def right_gate(module: Any, heads: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Heads times softplus of their gates, as Laguna has it."""
    gate = modeling_laguna.F.softplus(module.g_proj(hidden))
    return (heads * gate[..., None]).flatten(-2)


def generic_attention_block(model: Any, undo: ExitStack) -> None:
    """An attention block of another model: it has no g_proj, and nothing multiplies its heads."""
    rewritten(model, undo, lambda _, heads, hidden: heads.flatten(-2))


def gates_tiled(model: Any, undo: ExitStack) -> None:
    """Gates of heads are tiled over the flat output, not repeated for each head."""

    def tiled(module: Any, heads: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        gate = modeling_laguna.F.softplus(module.g_proj(hidden))
        return heads.flatten(-2) * gate.repeat(1, 1, module.head_dim)

    rewritten(model, undo, tiled)


def norms_after_rotation(model: Any, undo: ExitStack) -> None:
    """q_norm and k_norm are applied to what is already rotated."""
    rewritten(model, undo, right_gate, norms_first=False)


def gate_of_one(model: Any, undo: ExitStack) -> None:
    """The gate's activation is not implemented, and 1 stands in its place."""
    put(undo, torch.nn.functional, "softplus", torch.ones_like)


def gate_reads_the_residual(model: Any, undo: ExitStack) -> None:
    """g_proj is given what comes before the norm."""
    for layer in model.model.layers:
        last = remembered(undo, layer.input_layernorm)
        before(undo, layer.self_attn.g_proj, lambda _, args, last=last: (last[0],))


DEFECTS = (
    Defect(window_of_63, ("attention.window_one_short",), prompts=BEYOND),
    Defect(window_of_65, ("attention.window_one_long",), prompts=BEYOND),
    Defect(window_never_closes, ("attention.window_ignored",), prompts=BEYOND),
    Defect(window_for_the_whole_model, ("attention.window_on_full_layers",), prompts=BEYOND),
    Defect(scores_as_they_are, ("attention.scale_missing",)),
    Defect(scaled_by_twice_the_width, ("attention.scale",)),
    Defect(heads_dealt_out, ("attention.groups_interleaved",)),
    Defect(planned_for_six_heads, ("attention.head_count_of_full_layers",)),
    Defect(one_more_in_the_softmax, ("attention.sink_of_zero",)),
    Defect(no_norms_of_heads, ("attention.qk_norm_missing",)),
    Defect(norms_after_rotation, ("attention.qk_norm_after_rope",)),
    Defect(norms_over_all_heads, ("attention.qk_norm_over_all_heads",)),
    Defect(gate_of_the_model_card, ("gate.sigmoid",)),
    Defect(gate_of_one, ("gate.missing",)),
    Defect(generic_attention_block, ("gate.missing",)),
    Defect(gates_tiled, ("gate.per_element",)),
    Defect(gate_reads_the_residual, ("gate.of_unnormed_input",)),
)
