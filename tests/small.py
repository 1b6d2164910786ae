"""Small models: a config of a few thousand weights, weights drawn from a seed, a loaded model.

``values`` are what the stored tensors mean, in float64, worked out here and not by the package;
``stored`` is what ``checkpoint.write`` is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

import laguna_ref
from laguna_ref.engines import Engine, with_replaced

Array = NDArray[Any]
Config = dict[str, Any]

BF16 = np.dtype(ml_dtypes.bfloat16)
KV_CACHE_SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}


def small_config(**changes: Any) -> Config:
    """Three layers, full then sliding (window 4), the first dense; every value may be changed."""
    config: Config = {
        "model_type": "laguna",
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_attention_heads_per_layer": [4, 6, 2],
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "moe_routed_scaling_factor": 2.5,
        "bos_token_id": 2,
        "eos_token_id": [2, 24],
        "pad_token_id": 9,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "gating": "per-head",
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4.0,
                "beta_slow": 1.0,
                "attention_factor": 1.0,
                "partial_rotary_factor": 0.5,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    }
    return config | changes


def uniform_config(
    layers: int, attention: str = "full_attention", mlp: str = "sparse", **changes: Any
) -> Config:
    """A small config whose layers are all of one kind."""
    return small_config(
        num_hidden_layers=layers,
        layer_types=[attention] * layers,
        mlp_layer_types=[mlp] * layers,
        num_attention_heads_per_layer=[4] * layers,
    ) | changes  # fmt: skip


def quantised(config: Config, bits: int = 4, group_size: int = 4) -> Config:
    """The same config with its routed experts packed."""
    group = {
        "format": "pack-quantized",
        "targets": [r"re:.*mlp\.experts\.\d+\.(gate|up|down)_proj$"],
        "weights": {
            "num_bits": bits,
            "group_size": group_size,
            "strategy": "group",
            "symmetric": True,
            "type": "int",
        },
    }
    return config | {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": group},
            "kv_cache_scheme": dict(KV_CACHE_SCHEME),
            "ignore": ["lm_head"],
        }
    }


@dataclass(frozen=True, repr=False)
class Small:
    """A config with drawn weights."""

    config: Config
    values: Mapping[str, Array]
    """What each tensor means: float64 by published name, quantised Linears as ``X.weight``."""
    stored: Mapping[str, Array]
    origin: str = "small(...)"
    """How to make it again."""

    def __repr__(self) -> str:
        return self.origin

    def load(self, **options: Any) -> laguna_ref.Laguna:
        """The model, through a folder on disk; memory maps outlive the folder."""
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.write(folder)
            return laguna_ref.load(folder, **({"engine": "numpy"} | options))

    def write(self, folder: Path, **options: Any) -> None:
        laguna_ref.checkpoint.write(folder, self.config, self.stored, **options)

    @cached_property
    def float64(self) -> laguna_ref.Laguna:
        return self.load(numerics="float64")

    def with_tensors(self, changes: Mapping[str, ArrayLike]) -> Small:
        """The same model with some dense tensors replaced, rounded to their stored types."""
        stored, values = dict(self.stored), dict(self.values)
        for name, value in changes.items():
            stored[name] = np.asarray(value, dtype=np.float64).astype(stored[name].dtype)
            values[name] = stored[name].astype(np.float64)
        origin = f"{self.origin} with other {', '.join(changes)}"
        return replace(self, stored=stored, values=values, origin=origin)

    def mapped(self, change: Any) -> Small:
        """``change(name, value)`` for every tensor, exactly; None leaves it as it is."""
        changed = {name: change(name, value) for name, value in self.values.items()}
        changed = {name: value for name, value in changed.items() if value is not None}
        result = self.with_tensors(changed)
        for name, value in changed.items():
            assert np.array_equal(result.values[name], value), f"{name} is rounded when stored"
        return result


def small(config: Config | None = None, seed: int = 0) -> Small:
    """Weights for ``config``, from ``seed``: unit activations, clearly unequal logits."""
    config = small_config() if config is None else config
    random = np.random.default_rng(seed)
    values: dict[str, Array] = {}
    stored: dict[str, Array] = {}

    def keep(name: str, array: Any, dtype: np.dtype[Any] = BF16) -> None:
        stored[name] = array.astype(dtype)
        values[name] = stored[name].astype(np.float64)

    def linear(module: str, rows: int, columns: int, gain: float = 1.0) -> None:
        keep(f"{module}.weight", random.normal(0, gain / np.sqrt(columns), (rows, columns)))

    def norm(module: str, width: int, centre: float = 1.0) -> None:
        keep(f"{module}.weight", centre * np.exp(random.normal(0, 0.2, width)))

    hidden, head_dim = config["hidden_size"], config["head_dim"]
    kv_heads = config["num_key_value_heads"]
    keep("model.embed_tokens.weight", random.normal(0, 1, (config["vocab_size"], hidden)))
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        heads = config["num_attention_heads_per_layer"][layer]
        norm(f"{at}.input_layernorm", hidden)
        linear(f"{at}.self_attn.q_proj", heads * head_dim, hidden)
        linear(f"{at}.self_attn.k_proj", kv_heads * head_dim, hidden)
        linear(f"{at}.self_attn.v_proj", kv_heads * head_dim, hidden)
        linear(f"{at}.self_attn.o_proj", hidden, heads * head_dim)
        linear(f"{at}.self_attn.g_proj", _gate_width(config, layer), hidden)
        norm(f"{at}.self_attn.q_norm", head_dim, 1.4)
        norm(f"{at}.self_attn.k_norm", head_dim, 1.4)
        norm(f"{at}.post_attention_layernorm", hidden)
        if (config.get("quantization_config") or {}).get("kv_cache_scheme"):
            keep(f"{at}.self_attn.k_scale", random.uniform(0.005, 0.02, 1))
            keep(f"{at}.self_attn.v_scale", random.uniform(0.005, 0.02, 1))
        if config["mlp_layer_types"][layer] == "dense":
            _draw_mlp(linear, f"{at}.mlp", hidden, config["intermediate_size"])
            continue
        linear(f"{at}.mlp.gate", config["num_experts"], hidden)
        bias = random.normal(0, 0.1, config["num_experts"])
        keep(f"{at}.mlp.experts.e_score_correction_bias", bias, np.dtype(np.float32))
        for expert in range(config["num_experts"]):
            prefix, width = f"{at}.mlp.experts.{expert}", config["moe_intermediate_size"]
            for name, shape in _mlp_shapes(hidden, width).items():
                module = f"{prefix}.{name}_proj"
                if config.get("quantization_config", {}).get("config_groups"):
                    _draw_packed(config, module, shape, random, values, stored)
                else:
                    linear(module, *shape)
        shared = config["shared_expert_intermediate_size"]
        _draw_mlp(linear, f"{at}.mlp.shared_expert", hidden, shared)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        linear("lm_head", config["vocab_size"], hidden, 3.0)
    return Small(config, values, stored, f"small({config!r}, seed={seed})")


def _gate_width(config: Config, layer: int) -> int:
    heads: int = config["num_attention_heads_per_layer"][layer]
    types = config.get("gating_types") or [config["gating"]] * config["num_hidden_layers"]
    per_element = types[layer] in ("per_element", "per-element")
    return heads * (config["head_dim"] if per_element else 1)


def _mlp_shapes(hidden: int, width: int) -> dict[str, tuple[int, int]]:
    return {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}


def _draw_mlp(linear: Any, prefix: str, hidden: int, width: int) -> None:
    for name, shape in _mlp_shapes(hidden, width).items():
        linear(f"{prefix}.{name}_proj", *shape)


def _draw_packed(
    config: Config,
    module: str,
    shape: tuple[int, int],
    random: np.random.Generator,
    values: dict[str, Array],
    stored: dict[str, Array],
) -> None:
    """Random codes and scales; packed column by column, as the format's description reads."""
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    bits, group = weights["num_bits"], weights["group_size"]
    rows, columns = shape
    half = 1 << (bits - 1)
    codes = random.integers(-half, half, shape)
    typical = 1.7 / half / np.sqrt(columns)
    scale = (typical * np.exp(random.normal(0, 0.2, (rows, columns // group)))).astype(BF16)
    words = np.zeros((rows, -(-columns * bits // 32)), dtype=np.uint32)
    for column in range(columns):
        word, shift = divmod(column * bits, 32)
        words[:, word] |= (codes[:, column] + half).astype(np.uint32) << np.uint32(shift)
    stored[f"{module}.weight_packed"] = words.view(np.int32)
    stored[f"{module}.weight_scale"] = scale
    values[f"{module}.weight"] = codes * np.repeat(scale.astype(np.float64), group, axis=1)


def tokens_for(config: Config, count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, config["vocab_size"], count)


def replaced(model: laguna_ref.Laguna, **functions: Any) -> laguna_ref.Laguna:
    """The model with some of its engine's functions replaced."""
    engine: Engine = with_replaced(model.engine, **functions)
    fp8 = [stored.fp8 for stored in model.kv_formats]
    return laguna_ref.Laguna(model.checkpoint, engine, model.numerics, fp8)


@st.composite
def configs(draw: st.DrawFn, *, quantise: bool = True) -> Config:
    """Every variation of the family that changes the maths, at a size a loop can follow."""
    layers = draw(st.integers(1, 3))

    def per_layer(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=layers, max_size=layers))

    kv_heads = draw(st.sampled_from([1, 2]))
    head_dim = draw(st.sampled_from([4, 8]))
    heads = [kv_heads * group for group in per_layer(st.integers(1, 3))]
    experts = draw(st.integers(1, 5))
    config = small_config(
        num_hidden_layers=layers,
        vocab_size=draw(st.integers(3, 30)),
        hidden_size=8 * draw(st.integers(1, 2)),
        intermediate_size=draw(st.integers(1, 12)),
        moe_intermediate_size=4 * draw(st.integers(1, 3)),
        shared_expert_intermediate_size=draw(st.integers(1, 8)),
        head_dim=head_dim,
        num_key_value_heads=kv_heads,
        num_attention_heads=heads[0],
        num_attention_heads_per_layer=heads,
        layer_types=per_layer(st.sampled_from(["full_attention", "sliding_attention"])),
        mlp_layer_types=per_layer(st.sampled_from(["dense", "sparse", "sparse"])),
        sliding_window=draw(st.integers(1, 6)),
        num_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        moe_routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        moe_router_score_func=draw(st.sampled_from(["sigmoid", "softmax", "sqrtsoftplus"])),
        moe_router_logit_softcapping=draw(st.sampled_from([0.0, 2.0])),
        norm_topk_prob=draw(st.booleans()),
        gating=draw(st.sampled_from([True, "per-head", "per-element"])),
        gating_activation=draw(st.sampled_from(["softplus", "softplus", "sigmoid"])),
        tie_word_embeddings=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-2])),
        rope_parameters={
            kind: draw(rope_parameters(head_dim))
            for kind in ("full_attention", "sliding_attention")
        },
    )
    if draw(st.booleans()):
        config["gating_types"] = per_layer(st.sampled_from(["per_head", "per_element"]))
    if quantise and draw(st.booleans()):
        config = quantised(config, draw(st.sampled_from([4, 8])))
    return config


@st.composite
def rope_parameters(draw: st.DrawFn, head_dim: int) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "rope_type": draw(st.sampled_from(["default", "yarn"])),
        "rope_theta": draw(st.sampled_from([20.0, 10000.0, 500000.0])),
        "partial_rotary_factor": draw(st.sampled_from([0.5, 1.0])),
    }
    if raw["rope_type"] == "yarn":
        raw |= {
            "factor": draw(st.sampled_from([1.0, 4.0, 32.0])),
            "original_max_position_embeddings": draw(st.sampled_from([16, 4096])),
            "beta_fast": draw(st.sampled_from([4.0, 64.0])),
            "beta_slow": 1.0,
            "attention_factor": draw(st.sampled_from([None, 1.0, 1.25])),
        }
    return raw


def models(*, quantise: bool = True) -> st.SearchStrategy[Small]:
    seeds = st.integers(0, 2**16)
    return st.builds(small, configs(quantise=quantise), seeds)
