"""Transformers' Laguna: loaded from a folder as its users load it, and traced.

``trace`` gives every trace point of ``laguna_ref`` that a run of it passes: module outputs by
hooks (inputs too, as ``MODULE:input``), and what no module returns (keys after RoPE, the gate's
values) by standing in for the functions of ``modeling_laguna`` that compute it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache, CompressedTensorsConfig, DynamicCache, LagunaForCausalLM
from transformers.models.laguna import modeling_laguna

Trace = dict[str, NDArray[Any]]


def load_transformers(
    folder: Path, dtype: torch.dtype = torch.float32, *, dequantize: bool = False
) -> LagunaForCausalLM:
    """The folder as Transformers loads it, eager attention; nothing missing, nothing left over.

    Key/value scales, which Transformers has no place for, are the exception.
    """
    options: dict[str, Any] = {}
    if dequantize:
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model, report = LagunaForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, **options
    )
    unexpected = {
        key for key in report["unexpected_keys"] if not key.endswith((".k_scale", ".v_scale"))
    }
    assert not report["missing_keys"], report["missing_keys"]
    assert not report["mismatched_keys"], report["mismatched_keys"]
    assert not unexpected, unexpected
    return model.eval()


def logits(
    model: LagunaForCausalLM, tokens: Sequence[int], cache: Cache | None = None
) -> NDArray[Any]:
    """[T, V] in float32; with a cache the tokens continue what it holds."""
    with torch.inference_mode():
        output = model(
            torch.tensor([tuple(tokens)]), use_cache=cache is not None, past_key_values=cache
        )
    return array(output.logits[0])


def trace(model: LagunaForCausalLM, tokens: Sequence[int], cache: Cache | None = None) -> Trace:
    """Every trace point of one run, by its name in ``laguna_ref``."""
    with recording(model) as points:
        logits(model, tokens, cache)
    return points


class Fp8Cache(DynamicCache):
    """Transformers' cache with keys and values through float8, in torch's own arithmetic.

    ``scales``: one pair (of keys, of values) a layer, None for a layer that stays float.
    """

    def __init__(self, model: LagunaForCausalLM, scales: Sequence[tuple[float, float] | None]):
        super().__init__(config=model.config)
        self.scales = scales

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        scales = self.scales[layer_idx]
        if scales is not None:
            key_states, value_states = (
                through_fp8(x, scale)
                for x, scale in zip((key_states, value_states), scales, strict=True)
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def through_fp8(x: torch.Tensor, scale: float) -> torch.Tensor:
    """``x`` after a stay in a float8 cache: divided in float32, clamped, and scaled back."""
    unit = torch.tensor(scale, dtype=torch.float32)
    codes = (x.float() / unit).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return (codes.float() * unit).to(x.dtype)


def array(x: torch.Tensor) -> NDArray[Any]:
    """A copy as NumPy: floats widened to float32 at least, integers as they are."""
    if x.is_floating_point() and x.dtype != torch.float64:
        x = x.float()
    return x.detach().numpy().copy()


@contextmanager
def recording(model: LagunaForCausalLM) -> Iterator[Trace]:
    """Fills the dictionary it yields while the model runs inside the block."""
    points: Trace = {}
    handles = [
        module.register_forward_hook(_keeper(points, name))
        for name, module in model.named_modules()
        if name and not name.endswith(("act_fn", "layers")) and name != "model"
    ]
    functions = _recording_functions(points, model)
    try:
        with patch.multiple(modeling_laguna, **functions):
            yield points
    finally:
        for handle in handles:
            handle.remove()


def _keeper(points: Trace, name: str) -> Any:
    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if inputs and inputs[0].is_floating_point():
            points[f"{name}:input"] = _rows(inputs[0])
        if isinstance(module, modeling_laguna.LagunaTopKRouter):
            logits, weights, ids = output
            points[name] = array(logits)
            points[name.replace(".gate", ".topk_ids")] = array(ids)
            points[name.replace(".gate", ".topk_weights")] = array(weights)
        elif isinstance(module, modeling_laguna.LagunaRotaryEmbedding):
            # cosine and sine [1, T, R] hold each of the R/2 pairs twice
            points[f"{name}.{inputs[2]}"] = np.stack(
                [array(x[0, :, : x.shape[2] // 2]) for x in output]
            )
        else:
            points[name] = _rows(output[0] if isinstance(output, tuple) else output)

    return keep


def _rows(x: torch.Tensor) -> NDArray[Any]:
    """Without the batch axis: [1, T, ...] or [T, ...] -> [T, ...]."""
    return array(x[0] if x.ndim > 2 else x)


def _recording_functions(points: Trace, model: LagunaForCausalLM) -> dict[str, Any]:
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
        points[f"{current[0]}.q_rope"] = by_token(queries)
        points[f"{current[0]}.k_rope"] = by_token(keys)
        return queries, keys

    def keep_attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        output, probabilities = attend(module, query, key, value, *args, **kwargs)
        own = query.shape[2]
        points[f"{current[0]}.k_cached"] = by_token(key[:, :, -own:])
        points[f"{current[0]}.v_cached"] = by_token(value[:, :, -own:])
        points[f"{current[0]}.attention"] = array(output[0])
        return output, probabilities

    def keep_softplus(x: torch.Tensor) -> torch.Tensor:
        result = plain.softplus(x)
        points[f"{current[0]}.gate"] = array(result.to(model.dtype)[0])
        return result

    return {
        "apply_rotary_pos_emb": keep_rope,
        "eager_attention_forward": keep_attention,
        "F": SimpleNamespace(linear=plain.linear, softplus=keep_softplus),
    }


def by_token(x: torch.Tensor) -> NDArray[Any]:
    """[1, heads, T, C] -> [T, heads, C]."""
    return array(x[0].transpose(0, 1))
