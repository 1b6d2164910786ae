"""Rounds weights in the forward pass as the exporter will, with straight-through gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laguna_tiny.architecture import INT4_LAYERS, INT8_LAYERS
from laguna_tiny.network import Parameters

GROUP = 128


def bits_of(name: str) -> int | None:
    """4 or 8 for a routed expert's matrix; None for what stays bfloat16."""
    if ".mlp.experts." not in name or name.endswith("e_score_correction_bias"):
        return None
    layer = int(name.split(".")[2])
    return {**dict.fromkeys(INT4_LAYERS, 4), **dict.fromkeys(INT8_LAYERS, 8)}[layer]


@torch.no_grad()
def quantised(weight: Tensor, bits: int) -> Tensor:
    """compressed-tensors' memoryless_minmax: symmetric, one bf16 scale a group of 128 columns,
    arithmetic in bf16, round half to even. Returns the dequantised weight in float32."""
    groups = weight.bfloat16().view(-1, GROUP)
    scale = groups.abs().amax(dim=1, keepdim=True) / ((2**bits - 1) / 2)
    scale = torch.where(scale == 0, torch.finfo(torch.bfloat16).eps, scale)
    limit = 2 ** (bits - 1)
    code = (groups / scale).clamp(-limit, limit - 1).round()
    return (code.float() * scale.float()).view(weight.shape)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def as_exported(parameters: Parameters) -> Parameters:
    """Every weight with the value it will have after export, differentiable."""
    rounded = {}
    for name, value in parameters.items():
        bits = bits_of(name)
        if name.endswith("e_score_correction_bias"):
            rounded[name] = value
        else:
            new = quantised(value, bits) if bits else value.detach().bfloat16().float()
            rounded[name] = _StraightThrough.apply(value, new)
    return rounded
