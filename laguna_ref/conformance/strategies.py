"""Hypothesis strategies for laws: small configs, adversarial weights, tokens around the edges.

Sizes are those that every engine accepts (rows of 16 bytes, even head dims, groups of 32) and
that the plain oracle runs in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from laguna_ref.conformance.laws.example import Config, Example
from laguna_ref.conformance.laws.law import Setting
from laguna_ref.conformance.laws.weights import TRAITS

MAX_TOKENS = 24
SPECIAL = (2, 24, 9)
"""Beginning and end of text, the second stop id, padding: ordinary tokens to the model."""
KV_CACHE_SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
KINDS = ("full_attention", "sliding_attention")
HARD = tuple(trait for trait in TRAITS if trait != "flat attention")


@st.composite
def configs(
    draw: st.DrawFn,
    /,
    setting: Setting,
    *,
    attention: Sequence[str] = KINDS,
    mlp: Sequence[str] = ("dense", "sparse"),
    layers: tuple[int, int] = (1, 3),
    **fixed: Any,
) -> Config:
    """A config of a few layers; ``fixed`` are keys that a law settles itself."""
    count = draw(st.integers(*layers))

    def per_layer(values: Sequence[Any]) -> list[Any]:
        return draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))

    kv_heads, head_dim = draw(st.sampled_from((1, 2))), draw(st.sampled_from((8, 16)))
    heads = [kv_heads * group for group in per_layer((2, 3, 1))]
    mlps = per_layer(mlp)
    if "sparse" in mlp and "sparse" not in mlps:
        mlps[-1] = "sparse"
    experts = draw(st.integers(4, 8))
    config: Config = {
        "model_type": "laguna",
        "architectures": ["LagunaForCausalLM"],
        "vocab_size": 32 + 16 * draw(st.integers(0, 2)),
        "hidden_size": draw(st.sampled_from((32, 64))),
        "intermediate_size": 32,
        "num_hidden_layers": count,
        "num_attention_heads": heads[0],
        "num_attention_heads_per_layer": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "sliding_window": draw(st.integers(2, 8)),
        "layer_types": per_layer(attention),
        "mlp_layer_types": mlps,
        "num_experts": experts,
        "num_experts_per_tok": experts if setting.every_expert else draw(st.integers(1, 3)),
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "moe_routed_scaling_factor": draw(st.sampled_from((2.5, 1.0))),
        "moe_apply_router_weight_on_input": False,
        "gating": draw(st.sampled_from(("per-head", "per-element"))),
        "rope_parameters": draw(rope_parameters()),
        "tie_word_embeddings": False,
        "bos_token_id": 2,
        "eos_token_id": [2, 24],
        "pad_token_id": 9,
        "torch_dtype": "bfloat16",
    }
    return config | fixed


@st.composite
def rope_parameters(draw: st.DrawFn) -> dict[str, Any]:
    """YaRN on half of each head of full layers, the plain kind on sliding ones, as released."""
    yarn = {
        "rope_type": "yarn",
        "rope_theta": draw(st.sampled_from((500.0, 10000.0))),
        "factor": draw(st.sampled_from((4.0, 32.0))),
        "original_max_position_embeddings": 32,
        "beta_fast": 8.0,
        "beta_slow": 1.0,
        "attention_factor": draw(st.sampled_from((1.0, 1.25))),
        "partial_rotary_factor": 0.5,
    }
    plain = {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 1.0}
    return {"full_attention": yarn, "sliding_attention": plain}


def fp8_cache() -> Config:
    """What declares an FP8 key/value cache, as a key of a config."""
    scheme = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {},
        "ignore": [],
        "kv_cache_scheme": dict(KV_CACHE_SCHEME),
    }
    return {"quantization_config": scheme}


def packed_experts(bits: int) -> Config:
    """What declares routed experts in groups of 32 packed integers, as a key of a config."""
    weights = {
        "num_bits": bits, "group_size": 32, "strategy": "group", "symmetric": True, "type": "int",
    }  # fmt: skip
    group = {
        "format": "pack-quantized",
        "targets": [r"re:.*mlp\.experts\.\d+\.(gate|up|down)_proj$"],
        "weights": weights,
    }
    scheme = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    return {"quantization_config": scheme}


@st.composite
def prompts(draw: st.DrawFn, vocabulary: int, least: int, most: int) -> tuple[int, ...]:
    """Token ids: any, special ones among them, or one token again and again."""
    ordinary = st.integers(0, vocabulary - 1)
    special = st.sampled_from([token for token in SPECIAL if token < vocabulary])
    one = st.one_of(ordinary, ordinary, ordinary, special)
    if draw(st.integers(0, 7)) == 7:
        one = st.just(draw(one))
    return tuple(draw(st.lists(one, min_size=least, max_size=most)))


@st.composite
def examples(
    draw: st.DrawFn,
    setting: Setting,
    model: Callable[[Setting], st.SearchStrategy[Config]],
    *,
    traits: Sequence[str] = HARD,
    always: Sequence[str] = (),
    tokens: tuple[int, int] = (2, 16),
    chosen: Callable[[st.DrawFn, Config, int], dict[str, int]] = lambda draw, config, count: {},
) -> Example:
    """A model (unless one is given), a prompt, and ``chosen(draw, config, tokens)`` of the law."""
    config = {} if setting.vocabulary is not None else draw(model(setting))
    seed, of_weights = 0, tuple(always)
    if config:
        seed = draw(st.integers(0, 2**20))
        if traits:
            of_weights += tuple(sorted(draw(st.sets(st.sampled_from(traits), max_size=2))))
    vocabulary = setting.vocabulary or config["vocab_size"]
    prompt = draw(prompts(vocabulary, *tokens))
    return Example(config, seed, of_weights, prompt, chosen(draw, config, len(prompt)))
