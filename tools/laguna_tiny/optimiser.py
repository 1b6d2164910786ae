"""Muon for the matrices inside the layers, Adam for embeddings, head, router, gates and norms.

Muon replaces a matrix's momentum by the nearest (semi-)orthogonal matrix, found by a few
Newton-Schulz steps; matrices of one shape, and so all experts, are done in one batch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laguna_tiny.network import Parameters

MUON = re.compile(r"(q|k|v|o|gate|up|down|gate_up)_proj(\.weight)?$")
QUINTIC = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Rates:
    """Peak learning rates; all follow the same schedule."""

    muon: float = 0.02
    embedding: float = 0.006
    head: float = 0.004
    router: float = 0.001  # faster, and the selection biases cannot keep the experts balanced
    other: float = 0.004
    decay: float = 0.05  # decoupled, of the matrices only


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """[N, rows, columns] -> all singular values near 1, in bfloat16."""
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return x.mT if tall else x


class Optimiser:
    """Muon and Adam as one, over the parameters that require a gradient."""

    def __init__(self, parameters: Parameters, rates: Rates) -> None:
        self.rates, self.steps = rates, 0
        trained = {name: value for name, value in parameters.items() if value.requires_grad}
        self.matrices = {name: value for name, value in trained.items() if MUON.search(name)}
        others = [name for name in trained if name not in self.matrices]
        self.momentum = {name: torch.zeros_like(value) for name, value in self.matrices.items()}
        rate_of = {"model.embed_tokens.weight": rates.embedding, "lm_head.weight": rates.head}

        def rate(name: str) -> float:
            return (
                rates.router if name.endswith("mlp.gate.weight") else rate_of.get(name, rates.other)
            )

        groups = [{"params": [trained[name]], "lr": rate(name)} for name in others]
        self.adam = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-10, fused=True)
        self.peaks = [group["lr"] for group in self.adam.param_groups]

    @torch.no_grad()
    def step(self, scale: float, momentum: float = 0.95) -> None:
        """One update with all learning rates times `scale`; gradients are cleared."""
        for group, peak in zip(self.adam.param_groups, self.peaks, strict=True):
            group["lr"] = peak * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for name, value in self.matrices.items():
            assert value.grad is not None, name
            average = self.momentum[name].lerp_(value.grad, 1 - momentum)
            update = value.grad.lerp_(average, momentum)  # Nesterov's look-ahead
            # gate and up are two matrices that happen to be stored as one.
            parts = 2 if name.endswith("gate_up_proj") else 1
            shape = (value.shape[-2] // parts, value.shape[-1])
            by_shape.setdefault(shape, []).append((value.view(-1, *shape), update.view(-1, *shape)))
        for (rows, columns), pairs in by_shape.items():
            new = orthogonalised(torch.cat([update for _, update in pairs]))
            rate = self.rates.muon * scale * max(1.0, rows / columns) ** 0.5
            start = 0
            for value, _ in pairs:
                value.mul_(1 - self.rates.muon * scale * self.rates.decay)
                value.add_(new[start : start + len(value)].to(value.dtype), alpha=-rate)
                start += len(value)
        for value in self.matrices.values():
            value.grad = None
        self.steps += 1

    def state(self) -> dict[str, Any]:
        """What `restore` takes to go on exactly here."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict(), "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        for name, value in state["momentum"].items():
            self.momentum[name].copy_(value)
        self.adam.load_state_dict(state["adam"])
        self.steps = state["steps"]
