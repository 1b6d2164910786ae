"""Watching the forward pass: a Recorder keeps the outputs of the modules its patterns name.

Trace points carry the names of the Transformers modules whose output they are; values that no
module returns have names of their own, listed last.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np

from laguna_ref.config import LagunaConfig
from laguna_ref.errors import InputError
from laguna_ref.numerics import Array

ATTENTION_POINTS = {
    "input_layernorm": "[T, D]",
    "self_attn.q_proj": "[T, H*C]",
    "self_attn.k_proj": "[T, G*C]",
    "self_attn.v_proj": "[T, G*C]",
    "self_attn.q_norm": "[T, H, C]",
    "self_attn.k_norm": "[T, G, C]",
    "self_attn.q_rope": "[T, H, C], after RoPE",
    "self_attn.k_rope": "[T, G, C], after RoPE",
    "self_attn.k_cached": "[T, G, C], as read back from the cache",
    "self_attn.v_cached": "[T, G, C], as read back from the cache",
    "self_attn.attention": "[T, H, C], before the gate",
    "self_attn.g_proj": "[T, H] or [T, H*C], before softplus",
    "self_attn.gate": "[T, H] or [T, H*C], after softplus",
    "self_attn.o_proj": "[T, D]",
    "self_attn": "[T, D], the same as o_proj",
    "post_attention_layernorm": "[T, D]",
}
SPARSE_POINTS = {
    "mlp.gate": "[T, E], router logits (after soft-capping)",
    "mlp.topk_ids": "[T, K], in descending order of selection score",
    "mlp.topk_weights": "[T, K]",
    "mlp.experts": "[T, D], routed sum before the scaling factor",
    "mlp.shared_experts": "[T, D]",
}
LAYER_POINTS = {"mlp": "[T, D]", "": "[T, D], the residual stream after the layer"}


def trace_points(config: LagunaConfig) -> dict[str, str]:
    """Every trace point of a model with the shape of its value, in order of execution."""
    points = {"model.embed_tokens": "[T, D]"}
    for layer in config.layers:
        sparse = SPARSE_POINTS if layer.mlp == "sparse" else {}
        for name, shape in (ATTENTION_POINTS | sparse | LAYER_POINTS).items():
            points[f"model.layers.{layer.index}.{name}".rstrip(".")] = shape
    return points | {"model.norm": "[T, D]", "lm_head": "[T, V]"}


class Recorder:
    """Keeps the values of the trace points that match any of its glob patterns.

    >>> recorder = Recorder("model.layers.*.mlp.gate", "lm_head")

    ``recorder[name]`` is a float32 or float64 array (integers for ``topk_ids``). Over several
    calls of a model with one cache, chunks are joined along the tokens.
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns or ("*",)
        self._chunks: dict[str, list[Array]] = {}

    def wants(self, name: str) -> bool:
        """Whether a pattern matches."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def record(self, name: str, value: Array) -> None:
        """Keeps a copy of a value [T, ...], if a pattern matches its name."""
        if self.wants(name):
            self._chunks.setdefault(name, []).append(np.array(value))

    def clear(self) -> None:
        """Forgets all that was recorded."""
        self._chunks.clear()

    def require_known(self, config: LagunaConfig) -> None:
        """Raises InputError for a pattern that names no trace point of the model."""
        points = trace_points(config)
        for pattern in self.patterns:
            if not any(fnmatchcase(point, pattern) for point in points):
                raise InputError(
                    "no trace point has this name", key=pattern,
                    expected=f"a pattern over names such as {', '.join(list(points)[:3])}",
                )  # fmt: skip

    def __getitem__(self, name: str) -> Array:
        if name not in self._chunks:
            raise KeyError(f"{name} was not recorded; recorded: {', '.join(self._chunks) or '-'}")
        return np.concatenate(self._chunks[name])

    def __contains__(self, name: object) -> bool:
        return name in self._chunks

    def __iter__(self) -> Iterator[str]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)
