"""From a folder to a model: options, and one line for each that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref.errors import CheckpointError, ConfigError, InputError, LagunaError
from tests.small import KV_CACHE_SCHEME, Small, quantised, small, small_config

FP8 = small(quantised(small_config()))
PLAIN = small()


def fp8_layers(model: Small = FP8, **options: Any) -> list[bool]:
    return [stored.fp8 for stored in model.load(**options).kv_formats]


@pytest.mark.parametrize("numerics", ["float64", "float32", "bfloat16"])
def test_numerics_and_their_own_dequantisation(numerics: str) -> None:
    model = FP8.load(numerics=numerics)
    assert model.numerics.name == numerics
    assert model.numerics.dequant == ("bf16" if numerics == "bfloat16" else "exact")


def test_dequantisation_may_be_chosen() -> None:
    exact, rounded = (FP8.load(dequant=name)([1, 2]) for name in ("exact", "bf16"))
    assert not np.array_equal(exact, rounded)


def test_the_cache_is_fp8_where_the_checkpoint_declares_it() -> None:
    assert fp8_layers() == [True] * 3
    assert fp8_layers(PLAIN) == [False] * 3


@pytest.mark.parametrize(("kv_cache", "fp8"), [("float", False), ("fp8", True)])
def test_the_caller_may_decide_otherwise(kv_cache: str, fp8: bool) -> None:
    for model in (FP8, PLAIN):
        assert fp8_layers(model, kv_cache=kv_cache) == [fp8] * 3


def test_scales_are_the_checkpoints_or_one() -> None:
    formats = FP8.load().kv_formats
    for layer, stored in enumerate(formats):
        at = f"model.layers.{layer}.self_attn"
        assert stored.k_scale == FP8.values[f"{at}.k_scale"].item()
        assert stored.v_scale == FP8.values[f"{at}.v_scale"].item()
    for stored in PLAIN.load(kv_cache="fp8").kv_formats:
        assert [float(stored.k_scale), float(stored.v_scale)] == [1, 1]


@pytest.mark.parametrize(
    ("skip", "fp8"),
    [
        ([], [True, True, True]),
        ([1], [True, False, True]),
        (["1"], [True, False, True]),
        ("0-1", [False, False, True]),
        (["0-1", 2], [False, False, False]),
        ("0,2", [False, True, False]),
        ("sliding_window", [True, False, False]),
        (["sliding_window", "0"], [False, False, False]),
    ],
)
def test_layers_may_be_left_out_of_the_fp8_cache(skip: Any, fp8: list[bool]) -> None:
    assert fp8_layers(kv_cache_skip_layers=skip) == fp8


@pytest.mark.parametrize("skip", [[3], "0-3", "-1", "all", "1-0", [1.5], ["sliding"]])
def test_layers_that_do_not_exist_cannot_be_left_out(skip: Any) -> None:
    with pytest.raises(InputError, match="0 to 2"):
        FP8.load(kv_cache_skip_layers=skip)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numerics": "float16"}, "numerics.*float64"),
        ({"dequant": "int8"}, "dequant.*exact"),
        ({"engine": "torch"}, "engine.*numpy"),
        ({"kv_cache": "int8"}, "kv_cache.*checkpoint"),
        ({"threads": 0}, "threads"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        PLAIN.load(**options)
    assert "\n" not in str(caught.value)


def test_an_unknown_config_key_may_be_ignored_by_name(tmp_path: Path) -> None:
    PLAIN.write(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(PLAIN.config | {"wobble": 1}))
    with pytest.raises(ConfigError, match="--ignore-config-key wobble"):
        laguna_ref.load(tmp_path / "model")
    model = laguna_ref.load(tmp_path / "model", ignore_config_keys=["wobble"])
    assert model.config.ignored == (("wobble", 1),)


@pytest.mark.parametrize("path", ["no/such/folder/at all", "nobody/no-such-model"])
def test_a_folder_that_is_not_there(path: str) -> None:
    with pytest.raises(CheckpointError, match=path) as caught:
        laguna_ref.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [1e-60, 0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_none_in_float32_are_refused(scale: float) -> None:
    """The first is one in float64, as which a file may hold it."""
    name = "model.layers.1.self_attn.k_scale"
    stored = dict(FP8.stored) | {name: np.array([scale], dtype=np.float64)}
    with pytest.raises(LagunaError, match=r"layers\.1\.self_attn\.k_scale"):
        Small(FP8.config, FP8.values, stored).load()


def test_gating_true_is_settled_by_the_width_of_g_proj() -> None:
    per_element = small(small_config(gating="per-element"))
    model = Small(per_element.config | {"gating": True}, per_element.values, per_element.stored)
    loaded = model.load(numerics="float64")
    assert [layer.gate for layer in loaded.config.layers] == ["per-element"] * 3
    assert np.array_equal(loaded([1, 2]), per_element.float64([1, 2]))


def test_a_tied_head_is_the_embedding() -> None:
    tied = small(small_config(tie_word_embeddings=True))
    head = tied.stored["model.embed_tokens.weight"]
    untied = Small(
        tied.config | {"tie_word_embeddings": False},
        tied.values,
        dict(tied.stored) | {"lm_head.weight": head},
    )
    assert np.array_equal(tied.float64([1, 2]), untied.float64([1, 2]))


def test_an_fp8_cache_without_scales_says_so() -> None:
    quantization = {"config_groups": {}, "kv_cache_scheme": dict(KV_CACHE_SCHEME)}
    config = small_config(quantization_config=quantization)
    model = Small(config, PLAIN.values, PLAIN.stored).load()
    assert any("1.0 is used" in note for note in model.checkpoint.notes)
    assert [stored.fp8 for stored in model.kv_formats] == [True] * 3
