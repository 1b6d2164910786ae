"""Defects of the mixture of experts: the router, what is added up, and the experts' weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from tests.peers.planted.defect import (
    Defect,
    after,
    before,
    overwrite,
    put,
    remembered,
    sparse_blocks,
)

Scores = Callable[[torch.Tensor], torch.Tensor]


def route(
    model: Any, undo: ExitStack, scores_of: Scores = torch.sigmoid, *, round_logits: bool = False,
    biased_weights: bool = False, normed: bool = True,
) -> None:  # fmt: skip
    """``LagunaTopKRouter.forward`` once more, one thing in it otherwise."""

    def of(router: Any) -> Any:
        def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits = torch.nn.functional.linear(x.reshape(-1, router.hidden_dim), router.weight)
            if round_logits:
                logits = logits.bfloat16().float()
            scores = scores_of(logits)
            selection = scores + router.e_score_correction_bias
            ids = torch.topk(selection, router.top_k, dim=-1).indices
            weights = (selection if biased_weights else scores).gather(-1, ids)
            if normed:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            return logits, weights, ids

        return forward

    for block in sparse_blocks(model):
        put(undo, block.gate, "forward", of(block.gate))


def softmax_router(model: Any, undo: ExitStack) -> None:
    """Scores are a softmax over the experts."""
    route(model, undo, lambda logits: torch.softmax(logits, dim=-1))


def bias_in_the_weights(model: Any, undo: ExitStack) -> None:
    """The experts are weighed by the scores that they were chosen by."""
    route(model, undo, biased_weights=True)


def weights_not_normed(model: Any, undo: ExitStack) -> None:
    """``norm_topk_prob`` is taken for false where the config does not say."""
    route(model, undo, normed=False)


def router_in_bfloat16(model: Any, undo: ExitStack) -> None:
    """The router's logits are bfloat16 in a float32 model."""
    route(model, undo, round_logits=True)


def bias_not_loaded(model: Any, undo: ExitStack) -> None:
    """The correction bias is looked for under another name and stays zero."""
    for block in sparse_blocks(model):
        bias = block.gate.e_score_correction_bias
        overwrite(undo, bias, torch.zeros_like(bias))


def one_expert_a_token(model: Any, undo: ExitStack) -> None:
    """Top 1 where 2 are configured."""
    for block in sparse_blocks(model):
        put(undo, block.gate, "top_k", block.gate.top_k - 1)


def three_experts_a_token(model: Any, undo: ExitStack) -> None:
    """Top 3 where 2 are configured."""
    for block in sparse_blocks(model):
        put(undo, block.gate, "top_k", block.gate.top_k + 1)


def router_reads_the_residual(model: Any, undo: ExitStack) -> None:
    """The router is given what comes before the norm."""
    for layer in model.model.layers:
        if layer.mlp in sparse_blocks(model):
            last = remembered(undo, layer.post_attention_layernorm)
            before(undo, layer.mlp.gate, lambda _, args, last=last: (last[0],))


def routed_scaling_of_one(model: Any, undo: ExitStack) -> None:
    """``moe_routed_scaling_factor`` is looked for as ``routed_scaling_factor`` and is 1."""
    for block in sparse_blocks(model):
        put(undo, block, "routed_scaling_factor", 1.0)


def routed_scaling_of_two(model: Any, undo: ExitStack) -> None:
    """The routed sum is scaled by 2 where 2.5 is configured."""
    for block in sparse_blocks(model):
        put(undo, block, "routed_scaling_factor", 2.0)


def rewritten(model: Any, undo: ExitStack, add: Callable[[Any, Any, float], Any]) -> None:
    """``LagunaSparseMoeBlock.forward`` once more; ``add(routed, shared, factor)`` ends it."""

    def of(block: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            rows = x.view(-1, x.shape[-1])
            shared = block.shared_experts(rows)
            _, weights, ids = block.gate(rows)
            routed = block.experts(rows, ids, weights)
            return add(routed, shared, block.routed_scaling_factor).reshape(x.shape)

        return forward

    for block in sparse_blocks(model):
        put(undo, block, "forward", of(block))


def shared_expert_dropped(model: Any, undo: ExitStack) -> None:
    """Its output is computed and not added."""
    rewritten(model, undo, lambda routed, shared, factor: routed * factor)


def shared_expert_scaled(model: Any, undo: ExitStack) -> None:
    """The sum of routed and shared experts is scaled, not the routed ones alone."""
    rewritten(model, undo, lambda routed, shared, factor: (routed + shared) * factor)


def shared_expert_on_two_ranks(model: Any, undo: ExitStack) -> None:
    """Two ranks hold it whole, and their outputs are summed."""
    for block in sparse_blocks(model):
        after(undo, block.shared_experts, lambda _, args, output: 2 * output)


def dense_layer_scaled(model: Any, undo: ExitStack) -> None:
    """The first layer is scaled like the others."""
    factor = model.config.moe_routed_scaling_factor
    after(undo, model.model.layers[0].mlp, lambda _, args, output: output * factor)


def up_before_gate(model: Any, undo: ExitStack) -> None:
    """The fused matrix of the experts is cut the other way round."""
    for block in sparse_blocks(model):
        fused = block.experts.gate_up_proj  # [E, 2F, D]
        gate, up = fused.chunk(2, dim=1)
        overwrite(undo, fused, torch.cat([up, gate], dim=1))


def experts_shifted(model: Any, undo: ExitStack) -> None:
    """Experts are numbered from the second on; the router is not told."""
    for block in sparse_blocks(model):
        for matrix in (block.experts.gate_up_proj, block.experts.down_proj):
            overwrite(undo, matrix, matrix.roll(-1, dims=0))


def nibbles_the_other_way(model: Any, undo: ExitStack) -> None:
    """INT4 is unpacked high nibble first: neighbouring columns trade places."""
    for layer in model.model.layers[1:6]:  # those of laguna-tiny that are stored as INT4
        for matrix in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            pairs = matrix.unflatten(-1, (-1, 2))
            overwrite(undo, matrix, pairs.flip(-1).flatten(-2))


def two_experts_exchanged(model: Any, undo: ExitStack) -> None:
    """In layer 3, two experts stand in each other's place."""
    experts, order = model.model.layers[3].mlp.experts, torch.arange(16)
    order[[3, 5]] = order[[5, 3]]
    for matrix in (experts.gate_up_proj, experts.down_proj):
        overwrite(undo, matrix, matrix[order])


def one_expert_twice_as_large(model: Any, undo: ExitStack) -> None:
    """One expert of layer 3 keeps a stale scale: its output is twice what it should be."""
    down = model.model.layers[3].mlp.experts.down_proj
    changed = down.clone()
    changed[3] *= 2
    overwrite(undo, down, changed)


DEFECTS = (
    Defect(softmax_router, ("router.softmax_scores",)),
    Defect(bias_not_loaded, ("router.bias_ignored",)),
    Defect(bias_in_the_weights, ("router.bias_in_weights",)),
    Defect(weights_not_normed, ("router.not_renormalised",)),
    Defect(router_in_bfloat16, ("router.bf16_logits",)),
    Defect(one_expert_a_token, ("router.one_expert_fewer",)),
    Defect(three_experts_a_token, ("router.one_expert_more",)),
    Defect(router_reads_the_residual, ("router.of_unnormed_input",)),
    Defect(routed_scaling_of_one, ("router.scaling_missing",)),
    Defect(routed_scaling_of_two, ("router.scaling_factor",)),
    Defect(shared_expert_dropped, ("experts.shared_missing",)),
    Defect(shared_expert_scaled, ("router.shared_scaled_too",)),
    Defect(shared_expert_on_two_ranks, ("experts.shared_doubled",)),
    Defect(dense_layer_scaled, ("experts.dense_layer_as_sparse",)),
    Defect(up_before_gate, ("experts.gate_up_swapped",)),
    Defect(experts_shifted, ("experts.rotated",)),
    Defect(nibbles_the_other_way, ("packed.nibbles_swapped",)),
    Defect(two_experts_exchanged, (), "model.layers.3.mlp.experts"),
    Defect(one_expert_twice_as_large, (), "model.layers.3.mlp.experts"),
)
