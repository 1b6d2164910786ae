"""Faults that laguna-tiny cannot show, on checkpoints that do; and what saturating ones hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import laguna_ref
from laguna_ref.conformance.faults import CATALOGUE
from laguna_ref.conformance.replay import run
from laguna_ref.golden.dump import execution_order
from laguna_ref.model import Laguna
from tests.conformance.samples import prompt, tiny
from tests.small import Small, quantised, small, small_config, tokens_for

COUNT = 12
"""Tokens: three windows of a small model."""
HALF_MAX = float(np.finfo(np.float16).max)


def packed() -> Small:
    """Groups of four columns, an FP8 cache."""
    return small(quantised(small_config()))


def tokens() -> Any:
    return tokens_for(small_config(), COUNT)


def first_difference(name: str, model: Laguna, tokens: Any) -> str:
    places = np.arange(len(tokens))
    with_it = run(CATALOGUE[name].plant(model), tokens, places)
    without = run(model, tokens, places)
    return next(
        point
        for point in sorted(without, key=execution_order)
        if not np.array_equal(with_it[point], without[point])
    )


def with_small_scales() -> Small:
    """Scales below 2**-14."""
    of = packed()
    stored = {
        name: array * array.dtype.type(2.0**-14) if name.endswith("weight_scale") else array
        for name, array in of.stored.items()
    }
    return replace(of, stored=stored)


def with_narrow_cache() -> Small:
    """Keys and values that are far beyond 464 scales."""
    of = packed()
    scales = [name for name in of.stored if name.endswith(("k_scale", "v_scale"))]
    return of.with_tensors({name: [2.0**-9] for name in scales})


def with_attention_factor() -> Small:
    """An attention factor that is not 1."""
    config = quantised(small_config())
    config["rope_parameters"]["full_attention"]["attention_factor"] = 1.25
    return small(config)


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("packed.groups_twice_as_long", packed),
        ("packed.scales_in_float16", with_small_scales),
        ("kv.overflow_to_nan_code", with_narrow_cache),
        ("rope.attention_factor_twice", with_attention_factor),
    ],
)
@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_it_first_shows_where_it_says(name: str, of: Any, engine: str) -> None:
    model = of().load(engine=engine)
    assert first_difference(name, model, tokens()) == CATALOGUE[name].first_point(model)


def test_groups_twice_as_long_take_every_scale_for_two_groups() -> None:
    model = packed().load()
    planted = CATALOGUE["packed.groups_twice_as_long"].plant(model)
    name = "model.layers.1.mlp.experts.0.gate_proj"
    right, wrong = (each.weights.layers[1].mlp for each in (model, planted))
    codes = packed().values[f"{name}.weight"] / np.repeat(
        packed().stored[f"{name}.weight_scale"].astype(np.float64), 4, axis=1
    )
    doubled = np.repeat(packed().stored[f"{name}.weight_scale"].astype(np.float64), 8, axis=1)
    expected = codes * doubled[:, : codes.shape[1]]
    assert np.array_equal(wrong.experts[0].gate_proj.rows(), expected)
    assert not np.array_equal(right.experts[0].gate_proj.rows(), expected)


def test_codes_are_cut_towards_zero() -> None:
    """Against the list of all codes."""
    model = tiny("fp8")
    planted = CATALOGUE["kv.codes_towards_zero"].plant(model)
    at = "model.layers.0.self_attn"
    points = run(planted, np.array(prompt(COUNT)), np.arange(COUNT))
    scale = model.kv_formats[0].k_scale
    units = np.abs(points[f"{at}.k_rope"]) / scale
    codes = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    expected = codes[np.searchsorted(codes, units, side="right") - 1] * scale
    found = points[f"{at}.k_cached"]
    assert np.array_equal(np.abs(found), expected)
    assert (np.sign(found) * points[f"{at}.k_rope"] >= 0).all()


def test_the_skip_list_moves_to_the_next_layer() -> None:
    model = laguna_ref.load(engine="numpy", kv_cache_skip_layers=[0])
    planted = CATALOGUE["kv.skip_list_off_by_one"].plant(model)
    assert [stored.fp8 for stored in planted.kv_formats] == [True, False] + [True] * 6
    first = first_difference("kv.skip_list_off_by_one", model, np.array(prompt(COUNT)))
    assert first == "model.layers.0.self_attn.k_cached"


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_a_short_ring_shows_from_the_first_full_window_on(engine: str) -> None:
    model = packed().load(engine=engine)
    window = model.config.sliding_window
    assert window
    planted = CATALOGUE["kv.ring_one_short"].plant(model)

    def decoded(model: Laguna) -> list[Any]:
        cache = model.new_cache()
        return [model([token], cache=cache)[0] for token in tokens().tolist()]

    same = [np.array_equal(*pair) for pair in zip(decoded(planted), decoded(model), strict=True)]
    assert same == [True] * (window - 1) + [False] * (COUNT - window + 1)
    assert np.array_equal(planted(tokens()), model(tokens()))


def test_a_residual_beyond_float16_saturates() -> None:
    of = small()
    name = "model.layers.0.mlp.down_proj.weight"
    model = of.with_tensors({name: of.values[name] * 2.0**20}).load()
    planted = CATALOGUE["half.residual_in_float16"].plant(model)
    places = np.arange(COUNT)
    assert np.abs(run(model, tokens(), places)["model.layers.0"]).max() > HALF_MAX
    assert np.abs(run(planted, tokens(), places)["model.layers.0"]).max() == HALF_MAX


def test_a_sum_beyond_float16_saturates() -> None:
    of = small()
    name = "model.layers.0.mlp.down_proj.weight"
    model = of.with_tensors({name: of.values[name] * 2.0**20}).load()
    planted = CATALOGUE["half.sums_in_float16"].plant(model)
    mlp = run(planted, tokens(), np.arange(COUNT))["model.layers.0.mlp"]
    assert np.abs(mlp).max() == HALF_MAX
    assert np.array_equal(mlp, mlp.astype(np.float16))


def test_packed_faults_read_codes_as_they_say() -> None:
    """Of one INT4 and one INT8 matrix, against codes and scales taken apart by hand."""
    for layer, bits in ((1, 4), (6, 8)):
        weight: Any = tiny().weights.layers[layer].mlp.experts[0].gate_proj
        stored = weight.packed.view(np.uint8).astype(np.int64)
        scale = weight.scale.astype(np.float64)
        if bits == 4:
            even, odd = stored & 15, stored >> 4
            unsigned = np.stack((even, odd), axis=2).reshape(weight.shape)
            swapped = np.stack((odd, even), axis=2).reshape(weight.shape)
            assert np.array_equal(read("packed.nibbles_swapped", layer), (swapped - 8) * scale)
            assert np.array_equal(read("packed.offset_missing", layer), unsigned * scale)
            signed = np.where(unsigned < 8, unsigned, unsigned - 16)
        else:
            signed = np.where(stored < 128, stored, stored - 256)
            half = stored[:, : weight.shape[1] // 2]
            codes = np.stack((half & 15, half >> 4), axis=2).reshape(weight.shape) - 8
            assert np.array_equal(read("packed.int8_as_int4", layer), codes * scale)
        assert np.array_equal(read("packed.twos_complement", layer), signed * scale)


def read(name: str, layer: int) -> Any:
    planted = CATALOGUE[name].plant(tiny())
    return planted.weights.layers[layer].mlp.experts[0].gate_proj.rows()
