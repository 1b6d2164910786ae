"""Which format a Linear has: targets, their order of precedence, the ignore list, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from laguna_ref.checkpoint import preset
from laguna_ref.errors import ConfigError
from laguna_ref.quantization import DENSE, WeightFormat, parse_quantization
from tests.small import KV_CACHE_SCHEME, Config

EXPERT = "model.layers.1.mlp.experts.0.gate_proj"


def group(bits: int, *targets: str, **weights: Any) -> Config:
    return {
        "format": "pack-quantized",
        "targets": list(targets),
        "weights": {
            "num_bits": bits,
            "group_size": 128,
            "strategy": "group",
            "symmetric": True,
            "type": "int",
        }
        | weights,
    }


def bits_of(module: str, groups: list[Config], ignore: list[str] | None = None) -> int | None:
    raw = {
        "config_groups": {f"group_{i}": value for i, value in enumerate(groups)},
        "ignore": ignore or [],
    }
    return parse_quantization(raw, "config.json").format_of(module).bits


def test_no_quantisation_means_dense() -> None:
    assert parse_quantization(None, "").format_of(EXPERT) == DENSE


def test_a_target_is_a_name_a_pattern_or_a_class() -> None:
    assert bits_of(EXPERT, [group(4, EXPERT)]) == 4
    assert bits_of(EXPERT, [group(4, r"re:.*gate_proj$")]) == 4
    assert bits_of(EXPERT, [group(4, "Linear")]) == 4
    assert bits_of(EXPERT, [group(4, r"re:.*up_proj$")]) is None


def test_patterns_match_from_the_start_of_the_name() -> None:
    assert bits_of(EXPERT, [group(4, r"re:layers\.1")]) is None
    assert bits_of(EXPERT, [group(4, r"re:model\.layers\.1\.")]) == 4


def test_names_go_before_patterns_before_classes() -> None:
    name, pattern = group(8, EXPERT), group(4, r"re:.*gate_proj$")
    assert bits_of(EXPERT, [pattern, name]) == 8
    assert bits_of(EXPERT, [group(8, "Linear"), pattern]) == 4


def test_of_equal_targets_the_first_group_decides() -> None:
    assert bits_of(EXPERT, [group(8, r"re:.*proj$"), group(4, r"re:.*gate_proj$")]) == 8


def test_ignored_modules_stay_dense() -> None:
    assert bits_of(EXPERT, [group(4, "Linear")], ignore=[r"re:.*experts\.0\."]) is None
    assert bits_of("lm_head", [group(4, "Linear")], ignore=["lm_head"]) is None


@pytest.mark.parametrize(
    "module",
    [
        "model.embed_tokens",
        "model.norm",
        "model.layers.0.input_layernorm",
        "model.layers.0.self_attn.q_norm",
        "model.layers.1.mlp.gate",
    ],
)
def test_what_is_no_linear_is_no_target_of_the_class(module: str) -> None:
    assert bits_of(module, [group(4, "Linear")]) is None


def test_formats_known_by_name_only() -> None:
    for name, kind in (("xs2-fp8", "float-quantized"), ("xs2-nvfp4", "nvfp4-pack-quantized")):
        raw = preset(name)["quantization_config"]
        assert parse_quantization(raw, "").format_of(EXPERT).kind == kind


def test_formats_print_as_people_call_them() -> None:
    assert str(WeightFormat("pack-quantized", 4, 128)) == "INT4 g128"
    assert str(WeightFormat("float-quantized")) == "FP8 block"
    assert str(DENSE) == "dense"


def test_the_offline_rotation_is_listed_as_without_effect() -> None:
    raw = preset("xs2-int4")["quantization_config"]
    assert "quantization_config.transform_config" in dict(parse_quantization(raw, "").unused)


@pytest.mark.parametrize("groups", [{}, None])
def test_an_fp8_cache_needs_no_groups(groups: Config | None) -> None:
    raw = {"config_groups": groups, "kv_cache_scheme": dict(KV_CACHE_SCHEME)}
    assert parse_quantization(raw, "").kv_cache_fp8


@pytest.mark.parametrize(
    "change",
    [{"num_bits": 4}, {"type": "int"}, {"strategy": "channel"}, {"dynamic": True}],
)
def test_other_cache_schemes_are_refused(change: Config) -> None:
    with pytest.raises(ConfigError, match="kv_cache_scheme"):
        parse_quantization({"kv_cache_scheme": KV_CACHE_SCHEME | change}, "")


def changed(path: str, value: Any) -> Config:
    """XS.2-INT4's ``quantization_config`` with the value at a dotted path replaced."""
    raw: Config = copy.deepcopy(preset("xs2-int4")["quantization_config"])
    *parents, last = path.split(".")
    inner = raw
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return raw


GROUP = "config_groups.group_0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("quant_method", "gptq"),
        ("new_key", 1),
        ("sparsity_config", {"format": "sparse-24-bitmask"}),
        ("ignore", "lm_head"),
        ("ignore", ["re:("]),
        (GROUP, None),
        (f"{GROUP}.targets", [1]),
        (f"{GROUP}.format", "marlin"),
        (f"{GROUP}.input_activations", {"num_bits": 8}),
        (f"{GROUP}.weights", None),
        (f"{GROUP}.weights.num_bits", 3),
        (f"{GROUP}.weights.num_bits", 4.0),
        (f"{GROUP}.weights.type", "float"),
        (f"{GROUP}.weights.strategy", "channel"),
        (f"{GROUP}.weights.group_size", 0),
        (f"{GROUP}.weights.group_size", True),
        (f"{GROUP}.weights.symmetric", False),
        (f"{GROUP}.weights.actorder", "group"),
    ],
)
def test_what_cannot_be_honoured_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="quantization_config") as caught:
        parse_quantization(changed(path, value), "config.json")
    assert "\n" not in str(caught.value)
