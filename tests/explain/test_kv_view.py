"""FP8: errors against a cast by ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import laguna_ref
from laguna_ref import explain
from tests.small import Small, quantised, small, small_config, tokens_for

TOKENS = tokens_for(small_config(), 20, seed=2)


def traced(model: laguna_ref.Laguna) -> laguna_ref.Recorder:
    recorder = laguna_ref.Recorder()
    model(TOKENS, trace=recorder)
    return recorder


@pytest.fixture(scope="module")
def one() -> Small:
    return small(quantised(small_config()))


@pytest.mark.parametrize("kv_cache", ["fp8", "float"])
def test_errors_are_those_of_the_cast(one: Small, kv_cache: str) -> None:
    model = one.load(numerics="float64", kv_cache=kv_cache)
    points = traced(model)
    for found in explain.kv(model, TOKENS).layers:
        at = f"model.layers.{found.layer.index}.self_attn"
        assert found.fp8 == (kv_cache == "fp8")
        for side, point, scale in (
            (found.keys, "k_rope", "k_scale"), (found.values, "v_proj", "v_scale"),
        ):  # fmt: skip
            x, s = points[f"{at}.{point}"], float(one.values[f"{at}.{scale}"][0])
            limited = np.clip(x.astype(np.float32) / np.float32(s), -448, 448)
            back = limited.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * s
            rms = np.sqrt(np.mean(x**2))
            assert side.scale == s
            assert side.rms == pytest.approx(rms)
            assert side.relative_error == pytest.approx(np.sqrt(np.mean((back - x) ** 2)) / rms)
            assert side.greatest == np.abs(x).max()
            assert side.range_used == pytest.approx(np.abs(x).max() / (448 * s))
            assert side.saturated == (np.abs(x) > 448 * s).sum()
            assert side.vanished == ((back == 0) & (x != 0)).sum()
            assert side.values == x.size


def test_what_is_measured_is_what_the_cache_gives_back(one: Small) -> None:
    model = one.float64
    points = traced(model)
    for found in explain.kv(model, TOKENS).layers:
        at = f"model.layers.{found.layer.index}.self_attn"
        x, back = points[f"{at}.k_rope"], points[f"{at}.k_cached"]
        error = np.linalg.norm(back - x) / np.linalg.norm(x)
        assert found.keys.relative_error == pytest.approx(error)


def test_a_small_scale_saturates_and_a_large_one_loses(one: Small) -> None:
    names = [f"model.layers.{i}.self_attn.k_scale" for i in range(3)]
    for scale, lost in ((2.0**-12, "saturated"), (2.0**10, "vanished")):
        changed = one.with_tensors({name: np.full(1, scale) for name in names})
        for found in explain.kv(changed.float64, TOKENS).layers:
            assert getattr(found.keys, lost) > 0
            assert found.keys.relative_error > 0.05
            assert getattr(found.values, lost) == 0


def test_bytes_of_the_cache(one: Small) -> None:
    view = explain.kv(one.float64, TOKENS)
    # One full layer of 20 tokens and two sliding ones of 4: keys and values of 2 heads of 8.
    assert view.nbytes == {"full_attention": 20 * 32, "sliding_attention": 2 * 4 * 32}
    assert view.full_nbytes == {"full_attention": 512 * 32, "sliding_attention": 2 * 4 * 32}
