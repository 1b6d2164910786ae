"""config.json -> LagunaConfig: the published configs, the family's variants, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laguna_ref.checkpoint import PRESETS, preset
from laguna_ref.config import LagunaConfig, LayerSpec
from laguna_ref.config_keys import FIXED_KEYS, UNUSED_KEYS
from laguna_ref.errors import ConfigError, UnknownConfigKeyError
from tests.small import KV_CACHE_SCHEME, Config, small_config, uniform_config

INT4, INT8 = "INT4 g128", "INT8 g128"

LAYER_FORMATS = [
    ("xs2", {0: "dense", 1: "dense", 30: "dense", 31: "dense", 39: "dense"}),
    ("xs2-int4", {0: "dense", 1: INT4, 30: INT4, 31: INT8, 39: INT8}),
    ("xs21-int4", {0: "dense", 1: INT4, 30: INT4, 31: INT8, 39: INT8}),
    ("xs2-fp8", {0: "FP8 block", 1: "FP8 block", 30: "FP8 block", 39: "FP8 block"}),
    ("xs2-nvfp4", {0: "NVFP4", 1: "NVFP4", 30: "NVFP4", 39: "NVFP4"}),
]


def parse(raw: Config, **options: Any) -> LagunaConfig:
    return LagunaConfig.from_dict(raw, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_every_published_config_is_read_as_described(name: str) -> None:
    config = parse(preset(name))
    xs21 = name == "xs21-int4"
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (40, 2048, 100352)
    assert (config.num_experts, config.num_experts_per_tok) == (256, 8)
    assert config.moe_routed_scaling_factor == 2.5
    assert config.norm_topk_prob
    assert config.moe_router_score_func == "sigmoid"
    assert config.moe_router_logit_softcapping == 0
    assert config.eos_token_id == (2, 24)
    assert config.max_position_embeddings == (262144 if xs21 else 131072)
    assert config.kv_cache_fp8 == (name != "xs2")
    assert config.ignored == ()
    for layer in config.layers:
        _check_published_layer(layer, 1.3465735902799727 if xs21 else 1.0, 8192 if xs21 else 4096)


def _check_published_layer(layer: LayerSpec, factor: float, context: int) -> None:
    full = layer.index % 4 == 0
    assert layer.attention == ("full_attention" if full else "sliding_attention")
    assert layer.num_heads == (48 if full else 64)
    assert (layer.num_kv_heads, layer.head_dim) == (8, 128)
    assert layer.window == (None if full else 512)
    assert layer.mlp == ("dense" if layer.index == 0 else "sparse")
    assert layer.intermediate_size == (8192 if layer.index == 0 else 512)
    assert (layer.gate, layer.gate_activation) == ("per-head", "softplus")
    assert layer.gate_width == layer.num_heads
    assert layer.rope.rope_type == ("yarn" if full else "default")
    assert layer.rope.rotary_dim == (64 if full else 128)
    assert layer.rope.rope_theta == (500000 if full else 10000)
    assert layer.rope.attention_factor == (factor if full else 1.0)
    if full:
        assert layer.rope.attention_factor_from == "config"
        assert layer.rope.original_max_position_embeddings == context
        assert (layer.rope.factor, layer.rope.beta_fast, layer.rope.beta_slow) == (32, 64, 1)


@pytest.mark.parametrize(("name", "formats"), LAYER_FORMATS)
def test_weight_formats_by_layer(name: str, formats: dict[int, str]) -> None:
    layers = parse(preset(name)).layers
    assert {index: str(layers[index].weight_format) for index in formats} == formats


@pytest.mark.parametrize("name", PRESETS)
def test_attention_router_and_head_are_dense_in_every_published_config(name: str) -> None:
    config = parse(preset(name))
    modules = ["lm_head", *(f"model.layers.1.self_attn.{p}_proj" for p in "qkvgo")]
    for module in [*modules, "model.layers.1.mlp.gate", "model.embed_tokens"]:
        assert config.weight_format(module).kind == "dense", module


@pytest.mark.parametrize("name", PRESETS)
def test_every_key_is_used_or_listed_with_a_reason(name: str) -> None:
    config = parse(preset(name))
    unused = dict(config.unused)
    assert all(unused.values())
    assert "architectures" in unused
    # XS.2 has the stray scalar that a validator of Transformers wanted; XS-2.1 no longer.
    stray = "rope_parameters.original_max_position_embeddings"
    assert (stray in unused) == (name != "xs21-int4")


def test_defaults_taken_are_listed_with_their_source() -> None:
    defaults = {key: (value, source) for key, value, source in parse(preset("xs2")).defaults}
    assert defaults["norm_topk_prob"][0] is True
    assert defaults["moe_router_score_func"][0] == "sigmoid"
    assert defaults["gating_activation"][0] == "softplus"
    assert all(source for _, source in defaults.values())


def test_a_file_or_its_folder_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    assert LagunaConfig.from_file(tmp_path) == LagunaConfig.from_file(tmp_path / "config.json")


def test_to_dict_gives_back_what_was_read() -> None:
    raw = preset("xs2-int4")
    assert parse(raw).to_dict() == raw


# Unknown keys


def test_an_unknown_key_is_refused_naming_key_value_and_the_way_out() -> None:
    with pytest.raises(UnknownConfigKeyError) as caught:
        parse(small_config(attention_wobble=7), source="a/config.json")
    line = str(caught.value)
    for part in ("a/config.json", "attention_wobble", "--ignore-config-key", "7"):
        assert part in line, line
    assert "\n" not in line


def test_an_ignored_key_is_recorded_with_its_value() -> None:
    raw = small_config(attention_wobble=7)
    config = parse(raw, ignore_keys=["attention_wobble", "not there"])
    assert config.ignored == (("attention_wobble", 7),)


@pytest.mark.parametrize("key", sorted(FIXED_KEYS))
def test_a_value_that_is_not_implemented_is_refused_never_ignored(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse(small_config(**{key: "something else"}), ignore_keys=[key])


@pytest.mark.parametrize("key", sorted(UNUSED_KEYS))
def test_known_keys_without_effect_are_listed(key: str) -> None:
    assert key in dict(parse(small_config(**{key: None})).unused)


# Kinds of layers


@pytest.mark.parametrize(
    "config",
    [
        uniform_config(2, "full_attention"),
        uniform_config(2, "sliding_attention"),
        uniform_config(2, mlp="dense"),
        uniform_config(2, mlp="sparse"),
    ],
    ids=["all full", "all sliding", "all dense", "all sparse"],
)
def test_models_of_one_kind_of_layer_may_keep_the_other_kinds_keys(config: Config) -> None:
    assert len(parse(config).layers) == 2


def test_several_dense_layers_first() -> None:
    kinds = ["dense", "dense", "sparse"]
    config = parse(small_config(mlp_layer_types=kinds))
    assert [layer.mlp for layer in config.layers] == kinds
    assert [layer.intermediate_size for layer in config.layers] == [16, 16, 8]


@pytest.mark.parametrize(
    ("only", "step", "kinds"),
    [
        ([0], 1, ["dense", "sparse", "sparse"]),
        ([0, 1], 1, ["dense", "dense", "sparse"]),
        ([], 2, ["dense", "sparse", "dense"]),
    ],
)
def test_dense_layers_by_the_older_pair_of_keys(
    only: list[int], step: int, kinds: list[str]
) -> None:
    legacy = {"mlp_only_layers": only, "decoder_sparse_step": step}
    raw = {k: v for k, v in small_config(**legacy).items() if k != "mlp_layer_types"}
    assert [layer.mlp for layer in parse(raw).layers] == kinds
    assert parse(raw | {"mlp_layer_types": kinds}).layers == parse(raw).layers


def test_contradicting_lists_of_dense_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="mlp_layer_types: contradicts"):
        parse(small_config(mlp_only_layers=[1], decoder_sparse_step=1))


def test_absent_mlp_types_mean_a_dense_first_layer() -> None:
    raw = {k: v for k, v in small_config().items() if k != "mlp_layer_types"}
    assert [layer.mlp for layer in parse(raw).layers] == ["dense", "sparse", "sparse"]


def test_one_head_count_serves_every_layer() -> None:
    raw = {k: v for k, v in small_config().items() if k != "num_attention_heads_per_layer"}
    assert [layer.num_heads for layer in parse(raw).layers] == [4, 4, 4]


# Gates


@pytest.mark.parametrize(
    ("gating", "gate"),
    [(True, "per-head"), ("per-head", "per-head"), ("per-element", "per-element")],
)
def test_gating(gating: bool | str, gate: str) -> None:
    layer = parse(small_config(gating=gating)).layers[1]
    assert layer.gate == gate
    assert layer.gate_width == (6 if gate == "per-head" else 6 * 8)


def test_gating_types_decide_layer_by_layer() -> None:
    types = ["per_element", "per_head", "per_element"]
    config = parse(small_config(gating_types=types))
    assert [layer.gate for layer in config.layers] == ["per-element", "per-head", "per-element"]


def test_with_gate_changes_one_layer() -> None:
    config = parse(small_config()).with_gate(1, "per-element")
    assert [layer.gate for layer in config.layers] == ["per-head", "per-element", "per-head"]


# Router


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "sqrtsoftplus"])
def test_score_functions(name: str) -> None:
    assert parse(small_config(moe_router_score_func=name)).moe_router_score_func == name


@pytest.mark.parametrize(("flag", "name"), [(True, "sigmoid"), (False, "softmax")])
def test_the_older_name_of_the_score_function(flag: bool, name: str) -> None:
    assert parse(small_config(moe_router_use_sigmoid=flag)).moe_router_score_func == name
    other = "softmax" if flag else "sigmoid"
    with pytest.raises(ConfigError, match="contradicts"):
        parse(small_config(moe_router_use_sigmoid=flag, moe_router_score_func=other))


def test_soft_capping() -> None:
    config = parse(small_config(moe_router_logit_softcapping=30.0))
    assert config.moe_router_logit_softcapping == 30


# RoPE layouts

FLAT_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def flat(**keys: Any) -> LagunaConfig:
    return parse({k: v for k, v in small_config(**keys).items() if k != "rope_parameters"})


def test_flat_keys_describe_every_layer() -> None:
    config = flat(rope_theta=77.0, partial_rotary_factor=0.5)
    for layer in config.layers:
        rope = layer.rope
        assert (rope.rope_type, rope.rope_theta, rope.rotary_dim) == ("default", 77.0, 4)


def test_flat_rope_scaling_beside_sliding_parameters() -> None:
    config = flat(
        rope_theta=77.0,
        rope_scaling=FLAT_YARN,
        swa_rope_parameters={"rope_type": "default", "rope_theta": 5.0},
    )
    full, sliding = config.layers[0].rope, config.layers[1].rope
    assert (full.rope_type, full.rope_theta, full.factor) == ("yarn", 77.0, 4.0)
    assert (sliding.rope_type, sliding.rope_theta) == ("default", 5.0)


def test_the_older_spelling_of_the_rope_type() -> None:
    spelled = {"type" if key == "rope_type" else key: value for key, value in FLAT_YARN.items()}
    assert flat(rope_theta=77.0, rope_scaling=spelled).layers[0].rope.rope_type == "yarn"


def test_one_kinds_own_parameters_go_before_flat_ones() -> None:
    config = parse(small_config(partial_rotary_factor=0.25))
    assert [layer.rope.rotary_dim for layer in config.layers] == [4, 2, 2]


def test_a_stray_scalar_other_than_the_known_one_is_refused() -> None:
    raw = small_config()
    raw["rope_parameters"] = raw["rope_parameters"] | {"factor": 2.0}
    with pytest.raises(ConfigError, match=r"rope_parameters\.factor"):
        parse(raw)


def test_a_kind_of_attention_without_parameters_is_refused() -> None:
    raw = small_config()
    raw["rope_parameters"] = {"full_attention": raw["rope_parameters"]["full_attention"]}
    with pytest.raises(ConfigError, match=r"rope_parameters\.sliding_attention"):
        parse(raw)


# Refusals


def test_an_fp8_cache_may_be_declared_without_quantised_weights() -> None:
    quantization = {"config_groups": {}, "kv_cache_scheme": dict(KV_CACHE_SCHEME)}
    config = parse(small_config(quantization_config=quantization))
    assert config.kv_cache_fp8
    assert config.layers[1].weight_format.kind == "dense"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 4}, "layer_types"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": 2.0}, "hidden_size"),
        ({"vocab_size": "40"}, "vocab_size"),
        ({"layer_types": ["full_attention"] * 2 + ["linear"]}, r"layer_types\[2\]"),
        ({"num_attention_heads_per_layer": [4, 6]}, "num_attention_heads_per_layer"),
        ({"num_attention_heads_per_layer": [4, 6, 3]}, "num_attention_heads_per_layer"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok"),
        ({"sliding_window": None}, "sliding_window"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"moe_routed_scaling_factor": float("inf")}, "moe_routed_scaling_factor"),
        ({"moe_routed_scaling_factor": float("-inf")}, "moe_routed_scaling_factor"),
        ({"moe_routed_scaling_factor": -(10**400)}, "moe_routed_scaling_factor"),
        ({"moe_router_logit_softcapping": -1.0}, "moe_router_logit_softcapping"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
        ({"gating": False}, "gating"),
        ({"gating": 1}, "gating"),
        ({"gating_types": ["per_head"]}, "gating_types"),
        ({"gating_activation": "relu"}, "gating_activation"),
        ({"moe_router_score_func": "tanh"}, "moe_router_score_func"),
        ({"eos_token_id": [2, "24"]}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
        ({"torch_dtype": "float8"}, "torch_dtype"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"rope_parameters": []}, "rope_parameters"),
        ({"quantization_config": []}, "quantization_config"),
    ],
)
def test_wrong_values_are_refused_by_key_in_one_line(changes: Config, key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        parse(small_config(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": ' + "[" * 100_000, "\x00"],
    ids=["empty", "list", "cut", "twice", "nan", "deep", "zero"],
)
def test_a_file_that_is_no_json_object_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        LagunaConfig.from_file(path)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        LagunaConfig.from_file(tmp_path)
