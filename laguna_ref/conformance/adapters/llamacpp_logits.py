"""llama.cpp as a backend: logits and a cache; it lets nobody look between its operations."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import laguna_ref
from laguna_ref.checkpoint import Checkpoint
from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.adapters.gguf_export import (
    ExportError,
    default_attention_factor,
    export,
)
from laguna_ref.conformance.adapters.installed import effective_config, versions
from laguna_ref.conformance.adapters.llamacpp_backend import Settings
from laguna_ref.conformance.adapters.llamacpp_model import LlamaCppModel
from laguna_ref.conformance.backend import BackendError
from laguna_ref.numerics import Array

CONTEXT = 256
"""Tokens there is room for at first; a longer run makes more."""
DEFAULT_BETAS = (32.0, 1.0)
"""``beta_fast`` and ``beta_slow`` of whoever gives llama.cpp none."""
READ = frozenset(
    {"model_type", "vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers",
     "rms_norm_eps", "num_attention_heads_per_layer", "num_key_value_heads", "head_dim",
     "intermediate_size", "mlp_layer_types", "num_experts", "num_experts_per_tok",
     "moe_intermediate_size", "shared_expert_intermediate_size", "moe_routed_scaling_factor",
     "moe_router_score_func", "norm_topk_prob", "sliding_window", "layer_types",
     "tie_word_embeddings", "rope_parameters"}
)  # fmt: skip
"""Keys of config.json that have a place in the file (some as the shape of a tensor)."""
ROPE_READ = frozenset(
    {"rope_type", "rope_theta", "factor", "original_max_position_embeddings",
     "partial_rotary_factor"}
)  # fmt: skip


class State(NamedTuple):
    """A sequence that can be taken up again."""

    cache: bytes
    length: int


class LlamaCppBackend:
    """A loaded model; what it does with the config is shown as it is, and not mended."""

    name = "llamacpp"
    capabilities: Collection[str] = ("chunks",)
    version = versions("llama-cpp-python")
    oracle = {"dequant": "exact", "kv_cache": "float"}  # noqa: RUF012

    def __init__(self, opened: Checkpoint, settings: Settings) -> None:
        with tempfile.TemporaryDirectory(prefix="laguna-ref-") as folder:
            file = Path(folder) / "model.gguf"
            try:
                export(opened, file, "F32", attn_factor=not settings.converted)
            except ExportError as error:
                raise BackendError(str(error), file=opened.path) from error
            self.model = LlamaCppModel(
                file, CONTEXT, os.cpu_count() or 1, exact=not settings.f16,
                pass_on=settings.betas,
            )  # fmt: skip
        self.precision = "f16-kv" if settings.f16 else "float32"
        self.config = _effective(opened.config, settings)

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits [T, V]."""
        return self.prefill(tokens)[1]

    def prefill(self, tokens: Sequence[int]) -> tuple[State, Array]:
        """A sequence of these tokens, and their logits."""
        self._make_room(len(tokens))
        self.model.forget()
        return self._run(tokens)

    def decode(self, state: State, tokens: Sequence[int]) -> tuple[State, Array]:
        """Any number of tokens more."""
        self._make_room(state.length + len(tokens))
        self.model.restore(state.cache, state.length)
        return self._run(tokens)

    def _run(self, tokens: Sequence[int]) -> tuple[State, Array]:
        logits = self.model.run([int(token) for token in tokens], last_only=False)
        return State(self.model.saved(), self.model.length), np.asarray(logits)

    def _make_room(self, tokens: int) -> None:
        if tokens > self.model.context:
            self.model.resize(2 * tokens)


def _effective(config: LagunaConfig, settings: Settings) -> dict[str, Any]:
    raw = config.to_dict()
    betas = {"beta_fast", "beta_slow"} if settings.betas else set()
    factor = set() if settings.converted else {"attention_factor"}
    used: dict[str, Any] = {key: raw[key] for key in READ if key in raw}
    used["rope_parameters"] = {
        kind: {key: value for key, value in rope.items() if key in ROPE_READ | betas | factor}
        for kind, rope in raw["rope_parameters"].items()
        if isinstance(rope, dict)
    }
    computed = {
        "dtype": "float32",
        "weights": "a GGUF file in float32, written for this run",
        "kv_cache": "float16" if settings.f16 else "float32",
        "attention": "flash attention" if settings.f16 else "plain",
        "yarn": _yarn(config, settings),
    }
    return effective_config(raw, used, computed)


def _yarn(config: LagunaConfig, settings: Settings) -> dict[str, float]:
    """What becomes of the full layers' YaRN; empty where there is none."""
    ropes = [layer.rope for layer in config.layers if layer.rope.rope_type == "yarn"]
    if not ropes:
        return {}
    rope = ropes[0]
    fast, slow = (rope.beta_fast, rope.beta_slow) if settings.betas else DEFAULT_BETAS
    factor = default_attention_factor(rope) if settings.converted else rope.attention_factor
    return {"attention_factor": factor, "beta_fast": fast, "beta_slow": slow}


def opened(folder: Path, settings: Settings) -> LlamaCppBackend:
    """The checkpoint in ``folder``."""
    return LlamaCppBackend(laguna_ref.checkpoint.open(folder), settings)
