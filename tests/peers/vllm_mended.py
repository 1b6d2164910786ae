"""Two defects of vLLM 0.32.0 mended, so that the rest of it can be judged; used by tests alone.

``router``: the CPU build stops at an assertion, as its router has sigmoid scores in its grouped
top-k alone, and Laguna asks for them without groups. With one group of all experts that function
computes Laguna's routing. CUDA builds have another router and need none of this.

``loader``: the router's correction bias is in the checkpoint, has a parameter, and is not loaded.

From the command line: ``python -m tests.peers.vllm_mended router,loader conform vllm ...``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.router import cpu_router

Routing = Callable[..., tuple[Any, Any]]
Weights = Iterable[tuple[str, torch.Tensor]]
BIAS = "e_score_correction_bias"


@contextmanager
def mended_router() -> Iterator[None]:
    """Inside the block, ``CPURouter`` takes sigmoid scores without groups."""
    stock: Routing = cpu_router.CPURouter._compute_routing

    def routed(
        self: Any, hidden_states: Any, router_logits: Any, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        if self.scoring_func != "sigmoid" or self.use_grouped_topk:
            return stock(self, hidden_states, router_logits, *args, **kwargs)
        return cpu_router._grouped_topk(
            gating_output=router_logits,
            topk=self.top_k,
            renormalize=self.renormalize,
            num_expert_group=1,
            topk_group=1,
            scoring_func=self.scoring_func,
            routed_scaling_factor=self.routed_scaling_factor,
            e_score_correction_bias=self.e_score_correction_bias,
        )

    with patch.object(cpu_router.CPURouter, "_compute_routing", routed):
        yield


@contextmanager
def mended_loader() -> Iterator[None]:
    """Inside the block, experts take the correction bias that lies among their weights."""
    stock = RoutedExperts.load_weights

    def loaded(self: Any, weights: Weights) -> Iterator[str]:
        def others() -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in weights:
                if name == BIAS:
                    self.e_score_correction_bias.data.copy_(weight)
                else:
                    yield name, weight

        yield from stock(self, others())
        yield BIAS

    with patch.object(RoutedExperts, "load_weights", loaded):
        yield


MENDED = {"router": mended_router, "loader": mended_loader}


def main() -> None:
    """``laguna-ref`` with what the first argument names mended."""
    from laguna_ref.cli import main as laguna_ref

    names = sys.argv.pop(1).split(",")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(MENDED[name]())
        sys.exit(laguna_ref())


if __name__ == "__main__":
    main()
