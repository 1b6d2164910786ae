"""Torch operators for the routed experts: choose, sort by expert, multiply group by group.

They are opaque to torch.compile, because group sizes change with every batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("laguna_tiny::route", mutates_args=())
def route(scores: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scores [T, E], bias [E] -> chosen experts [T, K], their order by expert and its inverse
    [T*K], and the end of each expert's group [E]."""
    chosen = torch.topk(scores + bias, top_k, dim=-1).indices
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    ends = torch.bincount(flat, minlength=scores.shape[1]).cumsum(0)
    return chosen, order, inverse, ends


@route.register_fake
def _(scores: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, experts = scores.shape
    chosen = scores.new_empty((tokens, top_k), dtype=torch.int64)
    flat = scores.new_empty((tokens * top_k,), dtype=torch.int64)
    return chosen, flat, torch.empty_like(flat), scores.new_empty((experts,), dtype=torch.int64)


@torch.library.custom_op("laguna_tiny::permute_rows", mutates_args=())
def permute_rows(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """x[index]; given the inverse permutation, the gradient is a gather too, not a scatter."""
    return x.index_select(0, index)


@permute_rows.register_fake
def _(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep_permutation(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])


def _permute_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    index, inverse = ctx.saved_tensors
    return permute_rows(gradient.contiguous(), inverse, index), None, None


permute_rows.register_autograd(_permute_backward, setup_context=_keep_permutation)


def _pieces(ends: Tensor, block: int = 64) -> Iterator[tuple[int, slice]]:
    """(expert, rows), each group in two pieces: whole blocks and the rest. A product's kernel is
    generated for its exact shape, so few distinct shapes keep the cache of kernels warm."""
    start = 0
    for expert, end in enumerate(ends.tolist()):
        middle = end - (end - start) % block
        for piece in (slice(start, middle), slice(middle, end)):
            if piece.stop > piece.start:
                yield expert, piece
        start = end


@torch.library.custom_op("laguna_tiny::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [N, in] sorted by expert, weight [E, out, in], ends [E] -> [N, out]."""
    out = x.new_empty((x.shape[0], weight.shape[1]))
    for expert, piece in _pieces(ends):
        torch.mm(x[piece], weight[expert].t(), out=out[piece])
    return out


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1]))


@torch.library.custom_op("laguna_tiny::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of weight, given that of the output [N, out]."""
    x_gradient, weight_gradient = torch.empty_like(x), torch.zeros_like(weight)
    for expert, piece in _pieces(ends):
        rows = gradient[piece]
        torch.mm(rows, weight[expert], out=x_gradient[piece])
        weight_gradient[expert] += rows.t() @ x[piece]
    return x_gradient, weight_gradient


@grouped_linear_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _keep_operands(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    x_gradient, weight_gradient = grouped_linear_backward(gradient.contiguous(), *ctx.saved_tensors)
    return x_gradient, weight_gradient, None


grouped_linear.register_autograd(_grouped_backward, setup_context=_keep_operands)
