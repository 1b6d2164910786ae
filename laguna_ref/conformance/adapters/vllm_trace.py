"""What passes through vLLM's Laguna while it runs, by the names of our trace points.

Outputs of modules come from hooks, which see a model that was not compiled. What is no module's
output comes from standing in for methods of each mixture of experts: the choice of experts, and
their sum. Nothing of the model is changed.

Not seen: the gate's values after softplus, keys and values as they lie in the cache, router logits
where they are soft-capped, and the choice where a kernel makes it itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from vllm.model_executor.models.laguna import LagunaAttention, LagunaForCausalLM, LagunaMoE

from laguna_ref.numerics import Array

Keep = Callable[[str, torch.Tensor], None]
"""Called with a trace point and a value that the model may overwrite later."""
See = Callable[[Any], None]
"""Called with what a module, or a method, returned."""
AS_NAMED = (
    "input_layernorm", "self_attn.q_norm", "self_attn.k_norm", "self_attn.g_proj",
    "self_attn.o_proj", "self_attn", "post_attention_layernorm", "mlp",
)  # fmt: skip
"""Modules of a layer whose output is the trace point of the same name."""


def array(x: torch.Tensor) -> Array:
    """A copy as NumPy: floats widened to float32, ids of experts to int64."""
    wide = x.float() if x.is_floating_point() else x.long()
    copied: Array = wide.detach().cpu().numpy().copy()
    return copied


@contextmanager
def recording(model: LagunaForCausalLM, keep: Keep) -> Iterator[None]:
    """Calls ``keep`` with every value of the runs inside the block."""
    body = model.model
    norms = [*(layer.input_layernorm for layer in body.layers[1:]), body.norm]
    with ExitStack() as stack:
        watch = _Watch(stack, keep)
        watch.as_named(body.embed_tokens, "model.embed_tokens")
        for index, (layer, following) in enumerate(zip(body.layers, norms, strict=True)):
            name = f"model.layers.{index}"
            for part in AS_NAMED:
                watch.as_named(layer.get_submodule(part), f"{name}.{part}")
            watch.attention(layer.self_attn, f"{name}.self_attn")
            if isinstance(layer.mlp, LagunaMoE):
                watch.experts(layer.mlp, f"{name}.mlp")
            watch.residual(following, name)
        watch.as_named(body.norm, "model.norm")
        yield


class _Watch:
    """Hooks that tell ``keep``, until ``stack`` is closed."""

    def __init__(self, stack: ExitStack, keep: Keep) -> None:
        self._stack, self._keep = stack, keep
        self._running: tuple[str, LagunaAttention] | None = None
        self._ropes: set[torch.nn.Module] = set()

    def as_named(self, module: torch.nn.Module, point: str) -> None:
        """What it returns, or the first of what it returns."""

        def see(output: Any) -> None:
            self._keep(point, output[0] if isinstance(output, tuple) else output)

        self._output(module, see)

    def residual(self, norm: torch.nn.Module, point: str) -> None:
        """The residual stream after a layer, which is added to in the norm that comes next."""
        self._output(norm, lambda output: self._keep(point, output[1]))

    def attention(self, module: LagunaAttention, name: str) -> None:
        """What is no output of a module of its own."""
        sizes = [module.q_size, module.kv_size, module.kv_size]

        def projected(output: Any) -> None:
            for part, value in zip("qkv", output[0].split(sizes, dim=-1), strict=True):
                self._keep(f"{name}.{part}_proj", value)

        def attended(output: torch.Tensor) -> None:
            self._keep(f"{name}.attention", _by_head(module, output))

        self._output(module.qkv_proj, projected)
        self._output(module.attn, attended)
        self._rope(module, name)

    def _rope(self, module: LagunaAttention, name: str) -> None:
        """Layers of one kind share the module that turns: the layer that is running is meant."""

        def enter(module: LagunaAttention, inputs: Any) -> None:
            self._running = name, module

        self._stack.callback(module.register_forward_pre_hook(enter).remove)
        if module.rotary_emb not in self._ropes:
            self._ropes.add(module.rotary_emb)
            self._output(module.rotary_emb, self._rotated)

    def _rotated(self, output: Any) -> None:
        assert self._running is not None
        name, module = self._running
        for part, value in zip("qk", output, strict=True):
            self._keep(f"{name}.{part}_rope", _by_head(module, value))

    def experts(self, module: LagunaMoE, name: str) -> None:
        """Router, experts and the shared expert."""
        if not getattr(module.config, "moe_router_logit_softcapping", 0.0):
            self.as_named(module.gate, f"{name}.gate")
        if module.shared_expert is not None:
            self.as_named(module.shared_expert, f"{name}.shared_experts")

        def chosen(output: Any) -> None:
            self._keep(f"{name}.topk_weights", output[0])
            self._keep(f"{name}.topk_ids", output[1])

        def summed(output: Any) -> None:
            if isinstance(output, torch.Tensor):  # else what a fused kernel has yet to finish
                self._keep(f"{name}.experts", output)

        self._method(module.experts.router, "select_experts", chosen)
        for method in ("forward_modular", "forward_monolithic"):
            self._method(module.experts.routed_experts, method, summed)

    def _output(self, module: torch.nn.Module, see: See) -> None:
        handle = module.register_forward_hook(lambda _, inputs, output: see(output))
        self._stack.callback(handle.remove)

    def _method(self, owner: Any, name: str, see: See) -> None:
        method = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            output = method(*args, **kwargs)
            see(output)
            return output

        self._stack.enter_context(patch.object(owner, name, told))


def _by_head(module: LagunaAttention, x: torch.Tensor) -> torch.Tensor:
    """[T, heads * C] -> [T, heads, C]."""
    return x.reshape(len(x), -1, module.head_dim)
