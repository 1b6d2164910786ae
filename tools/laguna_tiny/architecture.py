"""The architecture of laguna-tiny, as the config.json of the folder it is published in."""

from __future__ import annotations

from typing import Any

LAYERS = 8
LAYER_TYPES = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"] * 2
QUERY_HEADS = {"full_attention": 6, "sliding_attention": 8}
INT4_LAYERS = range(1, 6)
INT8_LAYERS = range(6, 8)


def _integer_group(layers: range, bits: int) -> dict[str, Any]:
    return {
        "format": "pack-quantized",
        "input_activations": None,
        "output_activations": None,
        "targets": [
            f"re:.*layers\\.[{layers[0]}-{layers[-1]}]\\..*(w[1-3]|gate_proj|up_proj|down_proj)$"
        ],
        "weights": {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": 128,
            "num_bits": bits,
            "observer": "memoryless_minmax",
            "observer_kwargs": {},
            "scale_dtype": None,
            "strategy": "group",
            "symmetric": True,
            "type": "int",
            "zp_dtype": None,
        },
    }


def quantization_config() -> dict[str, Any]:
    """The released INT4 model's, its two groups on this model's layers, not rotated."""
    return {
        "config_groups": {
            "group_0": _integer_group(INT4_LAYERS, 4),
            "group_1": _integer_group(INT8_LAYERS, 8),
        },
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": [
            "lm_head",
            "model.layers.0.mlp.gate_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.0.mlp.down_proj",
            *(rf"re:.*\.self_attn\.{name}_proj$" for name in "qkvog"),
            r"re:.*\.mlp\.gate$",
            *(rf"re:.*\.mlp\.shared_expert\.{name}_proj$" for name in ("gate", "up", "down")),
        ],
        "kv_cache_scheme": {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": None,
            "num_bits": 8,
            "observer": "minmax",
            "observer_kwargs": {},
            "scale_dtype": None,
            "strategy": "tensor",
            "symmetric": True,
            "type": "float",
            "zp_dtype": None,
        },
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.14.1.dev11+gf2ee47b",
    }


def config() -> dict[str, Any]:
    """config.json, key for key in the order of the released INT4 model's."""
    return {
        "architectures": ["LagunaForCausalLM"],
        "model_type": "laguna",
        "vocab_size": 3072,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": QUERY_HEADS["full_attention"],
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-06,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "router_aux_loss_coef": 0.0,
        "bos_token_id": 2,
        "eos_token_id": [2, 24],
        "pad_token_id": 9,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "gating": True,
        "sliding_window": 64,
        "rope_parameters": {
            "full_attention": {
                "rope_theta": 500000.0,
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 1024,
                "beta_slow": 1.0,
                "beta_fast": 64.0,
                "attention_factor": 1.0,
                "partial_rotary_factor": 0.5,
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
            },
            "original_max_position_embeddings": 1024,
        },
        "layer_types": LAYER_TYPES,
        "moe_apply_router_weight_on_input": False,
        "partial_rotary_factor": 0.5,
        "mlp_layer_types": ["dense"] + ["sparse"] * (LAYERS - 1),
        "use_bidirectional_attention": False,
        "moe_routed_scaling_factor": 2.5,
        "num_attention_heads_per_layer": [QUERY_HEADS[kind] for kind in LAYER_TYPES],
        "quantization_config": quantization_config(),
    }
