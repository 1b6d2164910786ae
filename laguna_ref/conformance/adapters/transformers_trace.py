"""What passes through Transformers' Laguna while it runs, by the names of our trace points.

Outputs of modules come from hooks; what no module returns (keys after RoPE, the gate's values)
from standing in for the functions of ``modeling_laguna`` that compute it. Nothing of the model
is changed, except the choice of experts where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from transformers import LagunaForCausalLM
from transformers.models.laguna import modeling_laguna

from laguna_ref.numerics import Array

Keep = Callable[[str, torch.Tensor], None]
"""Called with a name and a value that the model may overwrite later."""


def array(x: torch.Tensor) -> Array:
    """A copy as NumPy: floats widened to float32 at least, integers as they are."""
    if x.is_floating_point() and x.dtype != torch.float64:
        x = x.float()
    copied: Array = x.detach().cpu().numpy().copy()
    return copied


@contextmanager
def recording(model: LagunaForCausalLM, keep: Keep) -> Iterator[None]:
    """Calls ``keep`` with every value of the runs inside the block, which need eager attention.

    Beside trace points: what goes into each module as ``MODULE:input`` [T, ...], and the cosines
    and sines of each kind of layer as ``model.rotary_emb.KIND`` [2, T, pairs].
    """
    handles = [
        module.register_forward_hook(_keeper(keep, name))
        for name, module in model.named_modules()
        if name and not name.endswith(("act_fn", "layers", "kv_cache")) and name != "model"
    ]
    try:
        with patch.multiple(modeling_laguna, **_recording_functions(keep, model)):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _keeper(keep: Keep, name: str) -> Any:
    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if inputs and inputs[0].is_floating_point():
            keep(f"{name}:input", _rows(inputs[0]))
        if isinstance(module, modeling_laguna.LagunaTopKRouter):
            for point, value in zip(("gate", "topk_weights", "topk_ids"), output, strict=True):
                keep(name.replace(".gate", f".{point}"), value)
        elif isinstance(module, modeling_laguna.LagunaRotaryEmbedding):
            # cosine and sine [1, T, R] hold each of the R/2 pairs twice
            pairs = [x[0, :, : x.shape[2] // 2] for x in output]
            keep(f"{name}.{inputs[2]}", torch.stack(pairs))
        else:
            keep(name, _rows(output[0] if isinstance(output, tuple) else output))

    return hook


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Without the batch axis: [1, T, ...] or [T, ...] -> [T, ...]."""
    return x[0] if x.ndim > 2 else x


def _by_token(x: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, C] -> [T, heads, C]."""
    return x[0].transpose(0, 1)


def _recording_functions(keep: Keep, model: LagunaForCausalLM) -> dict[str, Any]:
    """Stand-ins for three functions of ``modeling_laguna`` that also keep what they return.

    RoPE and the gate's softplus are not told their layer; it is the one whose attention comes
    next (softplus: came last).
    """
    rope, attend = modeling_laguna.apply_rotary_pos_emb, modeling_laguna.eager_attention_forward
    plain = torch.nn.functional
    layer = iter(range(model.config.num_hidden_layers))
    current: list[str] = []

    def keep_rope(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        current[:] = [f"model.layers.{next(layer)}.self_attn"]
        queries, keys = rope(*args, **kwargs)
        keep(f"{current[0]}.q_rope", _by_token(queries))
        keep(f"{current[0]}.k_rope", _by_token(keys))
        return queries, keys

    def keep_attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        output, probabilities = attend(module, query, key, value, *args, **kwargs)
        own = query.shape[2]
        keep(f"{current[0]}.k_cached", _by_token(key[:, :, -own:]))
        keep(f"{current[0]}.v_cached", _by_token(value[:, :, -own:]))
        keep(f"{current[0]}.attention", output[0])
        return output, probabilities

    def keep_softplus(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = plain.softplus(x)
        keep(f"{current[0]}.gate", result.to(model.dtype)[0])
        return result

    return {
        "apply_rotary_pos_emb": keep_rope,
        "eager_attention_forward": keep_attention,
        "F": SimpleNamespace(linear=plain.linear, softplus=keep_softplus),
    }


@contextmanager
def forced_routing(
    model: LagunaForCausalLM, routing: Mapping[int, tuple[Array, Array | None]]
) -> Iterator[None]:
    """Sends the tokens of the run inside the block to the experts named, layer by layer.

    routing: ids [T, K] and their weights [T, K]; None for what the router gives those experts.
    """
    handles = [
        model.model.layers[layer].mlp.gate.register_forward_hook(_chooser(ids, weights))
        for layer, (ids, weights) in routing.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _chooser(ids: Array, weights: Array | None) -> Any:
    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        logits, own_weights, own_ids = output
        chosen = torch.tensor(ids, dtype=own_ids.dtype, device=own_ids.device)
        if weights is None:
            scores = torch.sigmoid(logits).gather(-1, chosen)
            scores = scores / scores.sum(dim=-1, keepdim=True)
        else:
            scores = torch.tensor(weights, device=own_weights.device)
        return logits, scores.to(own_weights.dtype), chosen

    return hook
