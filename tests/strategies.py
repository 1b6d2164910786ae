"""Hypothesis strategies for small Lagunas: configs of every shape the family knows, and weights.

A config is the JSON object of a config.json. Weights are a function of a config and a seed
(``random_tensors``), so that an example prints as two short values and can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from laguna_ref.checkpoint import preset
from laguna_ref.checkpoint.names import TensorRule, tensor_rules
from laguna_ref.config import LagunaConfig

Draw = st.DrawFn
Config = dict[str, Any]
Tensors = dict[str, NDArray[Any]]

MAX_POSITIONS = 256


class Example(NamedTuple):
    """A model to be made, and the tokens to show it."""

    config: Config
    seed: int
    """Of the weights and the tokens."""
    heavy_tails: bool
    """Weights with outliers, as trained ones have."""
    tokens: tuple[int, ...]

    def tensors(self) -> Tensors:
        return random_tensors(self.config, self.seed, heavy_tails=self.heavy_tails)


@st.composite
def examples(draw: Draw, *, bits: tuple[int, ...] = (), max_tokens: int = 24) -> Example:
    """A config (``bits``: of the routed experts, by turns; none for dense weights) and tokens."""
    config = draw(configs(bits=bits))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    tokens = random.integers(0, config["vocab_size"], random.integers(1, max_tokens, endpoint=True))
    return Example(config, seed, draw(st.booleans()), tuple(tokens.tolist()))


@st.composite
def configs(draw: Draw, *, bits: tuple[int, ...] = ()) -> Config:
    """A small config that Transformers accepts as well.

    With ``bits`` the routed experts are packed INT4 (or INT8): the first sparse layers take
    the first of ``bits``, the later ones the next, as in the published checkpoint.
    """
    layers = draw(st.integers(2 if bits else 1, 5))
    kv_heads, head_dim = draw(st.integers(1, 3)), 2 * draw(st.integers(4, 16))
    heads = [kv_heads * draw(st.integers(1, 4)) for _ in range(layers)]
    kinds = draw(st.lists(_kinds, min_size=layers, max_size=layers))
    mlps = draw(st.sampled_from(_mlp_patterns(layers, len(bits))))
    group = draw(st.sampled_from((32, 64, 128)))
    # Rows of 16 bytes even in bfloat16, which torch's grouped_mm insists on.
    width = st.just(group) if bits else st.integers(2, 8).map(lambda n: 8 * n)
    experts = draw(st.integers(2, 16))
    config: Config = {
        "model_type": "laguna",
        "architectures": ["LagunaForCausalLM"],
        "vocab_size": draw(st.integers(16, 96)),
        "hidden_size": group * draw(st.integers(1, 128 // group)) if bits else draw(width),
        "intermediate_size": draw(st.integers(2, 24)) * 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_attention_heads_per_layer": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": draw(st.sampled_from((1e-6, 1e-5, 1e-3))),
        "sliding_window": draw(st.integers(1, 16)),
        "layer_types": kinds,
        "mlp_layer_types": mlps,
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": draw(width),
        "shared_expert_intermediate_size": draw(st.integers(2, 12)) * 4,
        "moe_routed_scaling_factor": draw(st.sampled_from((1.0, 2.5, 0.7))),
        "moe_apply_router_weight_on_input": False,
        "gating": draw(st.sampled_from((True, "per-head", "per-element"))),
        "rope_parameters": draw(_rope_parameters(head_dim)),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": 2,
        "eos_token_id": [2, 3],
        "pad_token_id": None,
        "torch_dtype": "bfloat16" if bits else "float32",
    }
    if draw(st.booleans()):
        config["moe_router_logit_softcapping"] = draw(st.sampled_from((0.0, 1.5, 30.0)))
    if bits:
        config["quantization_config"] = _quantization(mlps, bits, group)
    return config


_kinds = st.sampled_from(("full_attention", "sliding_attention"))


def _mlp_patterns(layers: int, sparse_at_least: int) -> list[list[str]]:
    """Some dense layers first (none, one, several), or dense and sparse ones by turns."""
    leading = [["dense"] * n + ["sparse"] * (layers - n) for n in range(layers + 1)]
    mixed = ["sparse" if index % 2 else "dense" for index in range(layers)]
    return [p for p in [*leading, mixed] if p.count("sparse") >= sparse_at_least]


@st.composite
def _rope_parameters(draw: Draw, head_dim: int) -> Config:
    result: Config = {
        "full_attention": draw(_one_rope(head_dim)),
        "sliding_attention": draw(_one_rope(head_dim)),
    }
    if draw(st.booleans()):  # the stray scalar of the published configs
        result["original_max_position_embeddings"] = 4096
    if draw(st.booleans()):  # here, and only here, Transformers reads it
        result["truncate"] = draw(st.booleans())
    return result


@st.composite
def _one_rope(draw: Draw, head_dim: int) -> Config:
    pairs = draw(st.integers(1, head_dim // 2))
    rope: Config = {
        "rope_type": "default",
        "rope_theta": draw(st.sampled_from((100.0, 10000.0, 500000.0))),
        # Half a dimension more than wanted: int() must not fall below it.
        "partial_rotary_factor": min(1.0, (2 * pairs + 0.5) / head_dim),
    }
    if draw(st.booleans()):
        return rope
    rope["rope_type"] = "yarn"
    rope["factor"] = draw(st.sampled_from((1.0, 4.0, 32.0, 64.0)))
    rope["original_max_position_embeddings"] = draw(st.sampled_from((16, 64, 4096)))
    if draw(st.booleans()):
        rope["beta_fast"] = draw(st.sampled_from((8.0, 32.0, 64.0)))
        rope["beta_slow"] = draw(st.sampled_from((0.5, 1.0, 2.0)))
    factor = draw(st.sampled_from(("absent", None, 1.0, 0.8, 1.3465735902799727, "mscale")))
    if factor == "mscale":
        rope |= {"mscale": 0.9, "mscale_all_dim": 0.6}
    elif factor != "absent":
        rope["attention_factor"] = factor
    return rope


def _quantization(mlps: list[str], bits: tuple[int, ...], group: int) -> Config:
    """``quantization_config`` as published: routed experts only, one group a number of bits."""
    sparse = [index for index, kind in enumerate(mlps) if kind == "sparse"]
    dense = [index for index, kind in enumerate(mlps) if kind == "dense"]
    groups: Config = {}
    for number, part in enumerate(np.array_split(sparse, len(bits))):
        layers = "|".join(str(index) for index in part)
        groups[f"group_{number}"] = {
            "format": "pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "targets": [f"re:.*layers\\.({layers})\\..*(w[1-3]|gate_proj|up_proj|down_proj)$"],
            "weights": {
                "actorder": None, "dynamic": False, "group_size": group, "num_bits": bits[number],
                "observer": "memoryless_minmax", "strategy": "group", "symmetric": True,
                "type": "int",
            },
        }  # fmt: skip
    projections = ("gate_proj", "up_proj", "down_proj")
    return {
        "config_groups": groups,
        "format": "pack-quantized",
        "ignore": [
            "lm_head",
            *(f"model.layers.{index}.mlp.{name}" for index in dense for name in projections),
            *(rf"re:.*\.self_attn\.{name}_proj$" for name in "qkvog"),
            r"re:.*\.mlp\.gate$",
            *(rf"re:.*\.mlp\.shared_expert\.{name}$" for name in projections),
        ],
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def small_xs2(name: str = "xs2-int4", layer_ids: Sequence[int] = (0, 1, 4, 31)) -> Config:
    """Layers of a published config made narrow: layout, patterns and group size 128 as released.

    By default a dense full layer, sparse sliding and full INT4 ones, and a sliding INT8 one.
    """
    config = preset(name, layer_ids=list(layer_ids))
    heads = [6 if kind == "full_attention" else 8 for kind in config["layer_types"]]
    return config | {
        "vocab_size": 96,
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_attention_heads": heads[0],
        "num_attention_heads_per_layer": heads,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "max_position_embeddings": MAX_POSITIONS,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 48,
    }


def random_tensors(config: Config, seed: int, *, heavy_tails: bool = False) -> Tensors:
    """Weights for ``checkpoint.write``, by published name, float32.

    Linears give outputs about as large as their inputs; with ``heavy_tails`` they are drawn
    from Student's t with three degrees of freedom. Norm weights vary around 1, some are
    negative; correction biases are large enough to change many a choice.
    """
    generator = np.random.default_rng(seed)
    tensors: Tensors = {}
    for rule in tensor_rules(LagunaConfig.from_dict(config)):
        made = _random_tensor(rule, generator, heavy_tails)
        if made is not None:
            name = f"{rule.module}.weight" if rule.part == "packed" else rule.name
            tensors[name] = made.astype(np.float32)
    return tensors


def _random_tensor(
    rule: TensorRule, generator: np.random.Generator, heavy_tails: bool
) -> NDArray[Any] | None:
    if rule.part in ("scale", "shape", "kv_scale"):
        return None
    if rule.part == "correction_bias":
        return 0.1 * generator.standard_normal(rule.shapes[0])
    if rule.part == "norm":
        sign = np.where(generator.random(rule.shapes[0]) < 0.05, -1.0, 1.0)
        return sign * np.exp(0.2 * generator.standard_normal(rule.shapes[0]))
    spread = generator.standard_t(3, rule.matrix) / 3**0.5 if heavy_tails else None
    normal = generator.standard_normal(rule.matrix) if spread is None else spread
    return normal if rule.part == "embedding" else normal / rule.matrix[1] ** 0.5


def random_kv_scales(config: Config, seed: int) -> Tensors:
    """``k_scale`` and ``v_scale`` of every layer, so small that the largest entries saturate."""
    generator = np.random.default_rng(seed)
    return {
        f"model.layers.{layer}.self_attn.{name}": (
            np.exp(generator.uniform(-7.0, -5.0, 1)).astype(np.float32)
        )
        for layer in range(config["num_hidden_layers"])
        for name in ("k_scale", "v_scale")
    }


def with_selectors(tensors: Tensors, seed: int) -> Tensors:
    """The same tensors with every Linear made to pick: one entry a row, a power of two.

    Products with such a weight are exact in whatever order they are summed, so that what
    remains of a difference between two implementations is not the order of their sums.
    """
    generator = np.random.default_rng(seed)
    result = dict(tensors)
    for name, array in tensors.items():
        if array.ndim == 2 and "embed_tokens" not in name:
            rows = np.arange(len(array))
            result[name] = np.zeros_like(array)
            columns = generator.integers(0, array.shape[1], len(array))
            result[name][rows, columns] = generator.choice([-2.0, -1.0, 0.5, 1.0], len(array))
    return result
