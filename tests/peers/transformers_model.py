"""Transformers' Laguna: loaded from a folder as its users load it, and traced.

``trace`` gives every trace point of ``laguna_ref`` that a run of it passes, and what else the
adapter's recording sees: what goes into modules, as ``MODULE:input``, and RoPE's tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import Cache, CompressedTensorsConfig, DynamicCache, LagunaForCausalLM

from laguna_ref.conformance.adapters import transformers_trace
from laguna_ref.conformance.adapters.transformers_trace import array

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


@contextmanager
def recording(model: LagunaForCausalLM) -> Iterator[Trace]:
    """Fills the dictionary it yields while the model runs inside the block."""
    points: Trace = {}

    def keep(name: str, value: torch.Tensor) -> None:
        points[name] = array(value)

    with transformers_trace.recording(model, keep):
        yield points
