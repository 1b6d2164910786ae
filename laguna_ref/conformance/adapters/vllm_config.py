"""What vLLM made of a config.json, as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from laguna_ref.checkpoint import Checkpoint
from laguna_ref.conformance.adapters.installed import effective_config

READ = frozenset(
    {"model_type", "dtype", "torch_dtype", "vocab_size", "hidden_size", "intermediate_size",
     "num_hidden_layers", "num_attention_heads", "num_attention_heads_per_layer",
     "num_key_value_heads", "head_dim", "max_position_embeddings", "attention_bias", "hidden_act",
     "rms_norm_eps", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
     "shared_expert_intermediate_size", "moe_routed_scaling_factor",
     "moe_apply_router_weight_on_input", "moe_router_logit_softcapping", "mlp_layer_types",
     "gating", "sliding_window", "layer_types", "swa_attention_sink_enabled", "rope_parameters",
     "swa_rope_parameters", "partial_rotary_factor", "tie_word_embeddings", "quantization_config"}
)  # fmt: skip
"""Keys that models/laguna.py, or what it calls, looks at."""
ROPE_READ = frozenset(
    {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast",
     "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate",
     "partial_rotary_factor"}
)  # fmt: skip
"""Keys of one kind of layer: ``get_rope`` of layers/rotary_embedding."""


def effective(engine: Any, opened: Checkpoint, weights: str) -> dict[str, Any]:
    """Keys with the values that vLLM uses, and what follows from them.

    weights: what it was given to load.
    """
    config = engine.llm_engine.vllm_config
    taken = config.model_config.hf_config.to_dict()
    used: dict[str, Any] = {key: taken[key] for key in sorted(READ) if key in taken}
    if isinstance(used.get("rope_parameters"), Mapping):
        used["rope_parameters"] = {
            kind: {key: value for key, value in rope.items() if key in ROPE_READ}
            for kind, rope in used["rope_parameters"].items()
            if isinstance(rope, Mapping)
        }
    computed = {
        "device": config.device_config.device_type,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "weights": weights,
        **engine.apply_model(_of_model)[0],
    }
    return effective_config(opened.config.to_dict(), used, computed)


def _of_model(model: Any) -> dict[str, Any]:
    """What the loaded model shows of itself."""
    attention = [layer.self_attn for layer in model.model.layers]
    sparse = [layer.mlp.experts for layer in model.model.layers if hasattr(layer.mlp, "experts")]
    kinds = [module.sliding_window is not None for module in attention]
    names = ["sliding_attention" if kind else "full_attention" for kind in kinds]
    return {
        "attention": _each(type(module.attn.impl).__name__ for module in attention),
        "kv_cache": _each(module.attn.kv_cache_dtype for module in attention),
        "router": _each(type(experts.router).__name__ for experts in sparse),
        "attention_factor": {
            name: float(getattr(module.rotary_emb, "mscale", 1.0))
            for name, module in zip(names, attention, strict=True)
        },
    }


def _each(values: Any) -> str:
    """The different ones, by commas."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
