"""The recorder: every documented trace point, in order, with its documented shape."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref import LagunaConfig, Recorder
from laguna_ref.errors import InputError
from laguna_ref.trace import trace_points
from tests import tolerances
from tests.small import Small, models, quantised, small, small_config, tokens_for

GATES = "model.layers.*.mlp.gate"


def expected_shape(text: str, name: str, config: LagunaConfig, tokens: int) -> tuple[int, ...]:
    """The documented shape, ``[T, H] or [T, H*C], before softplus``, with numbers for letters."""
    match = re.match(r"model\.layers\.(\d+)", name)
    layer = config.layers[int(match[1])] if match else config.layers[0]
    letters = {
        "T": tokens,
        "D": config.hidden_size,
        "H": layer.num_heads,
        "G": layer.num_kv_heads,
        "C": layer.head_dim,
        "E": config.num_experts,
        "K": config.num_experts_per_tok,
        "V": config.vocab_size,
    }
    shapes = re.findall(r"\[(.*?)\]", text)
    shape = shapes[-1] if layer.gate == "per-element" else shapes[0]
    sizes = [[letters[f] for f in axis.split("*")] for axis in shape.split(", ")]
    return tuple(int(np.prod(factors)) for factors in sizes)


@given(models(), st.integers(1, 5))
def test_every_point_is_produced_in_the_documented_order_and_shape(
    model: Small, tokens: int
) -> None:
    loaded = model.load()
    recorder = Recorder()
    loaded(tokens_for(model.config, tokens), trace=recorder)
    documented = trace_points(loaded.config)
    assert list(recorder) == list(documented)
    for name, text in documented.items():
        value = recorder[name]
        assert value.shape == expected_shape(text, name, loaded.config, tokens), name
        assert value.dtype == (np.int64 if name.endswith("topk_ids") else np.float32), name


@pytest.mark.parametrize("numerics", ["float64", "float32", "bfloat16"])
def test_values_have_the_numerics_type(numerics: str) -> None:
    config = quantised(small_config())
    recorder = Recorder("*cached", "model.norm")
    small(config).load(numerics=numerics)(tokens_for(config, 3), trace=recorder)
    dtype = np.float64 if numerics == "float64" else np.float32
    assert {recorder[name].dtype for name in recorder} == {np.dtype(dtype)}


@pytest.fixture(scope="module")
def loaded() -> Any:
    return small(small_config()).load(numerics="float64")


def recorded(loaded: Any, *patterns: str, tokens: int = 3) -> Recorder:
    recorder = Recorder(*patterns)
    loaded(tokens_for(loaded.config.raw, tokens), trace=recorder)
    return recorder


def test_patterns_pick_points(loaded: Any) -> None:
    gates = [f"model.layers.{layer}.mlp.gate" for layer in (1, 2)]
    assert list(recorded(loaded, GATES)) == gates
    assert list(recorded(loaded, "lm_head", GATES)) == [*gates, "lm_head"]
    assert list(recorded(loaded, "model.layers.[01].self_attn")) == [
        "model.layers.0.self_attn",
        "model.layers.1.self_attn",
    ]
    assert len(recorded(loaded)) == len(trace_points(loaded.config))


def test_a_recorder_does_not_change_the_logits(loaded: Any) -> None:
    tokens = tokens_for(loaded.config.raw, 5)
    recorder = Recorder()
    logits = loaded(tokens, trace=recorder)
    assert np.array_equal(logits, loaded(tokens))
    assert np.array_equal(recorder["lm_head"], logits)


def test_what_is_recorded_is_a_copy(loaded: Any) -> None:
    recorder = Recorder("lm_head", "model.norm")
    logits = loaded([1, 2], trace=recorder)
    before = recorder["lm_head"].copy()
    logits[:] = 0
    assert np.array_equal(recorder["lm_head"], before)


def test_chunks_with_one_cache_are_joined_along_the_tokens(loaded: Any) -> None:
    tokens = tokens_for(loaded.config.raw, 9)
    whole, parts = Recorder(), Recorder()
    loaded(tokens, trace=whole)
    cache = loaded.new_cache()
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        loaded(tokens[start:stop], cache=cache, trace=parts)
    assert list(parts) == list(whole)
    error = tolerances.model_error(loaded.config, 9, np.float64)
    for name in whole:
        tolerances.assert_within(parts[name], whole[name], error, name, unit=tolerances.UNIT)


def test_last_only_records_the_last_token_after_the_layers(loaded: Any) -> None:
    recorder = Recorder()
    loaded(tokens_for(loaded.config.raw, 4), last_only=True, trace=recorder)
    rows = {name: len(recorder[name]) for name in recorder}
    assert {name for name, count in rows.items() if count == 1} == {"model.norm", "lm_head"}
    assert set(rows.values()) == {1, 4}


def test_clear_forgets(loaded: Any) -> None:
    recorder = recorded(loaded, GATES)
    recorder.clear()
    assert list(recorder) == []
    assert "lm_head" not in recorder


def test_asking_for_what_was_not_recorded_says_what_was(loaded: Any) -> None:
    with pytest.raises(KeyError, match=r"lm_head was not recorded; recorded: .*mlp\.gate"):
        recorded(loaded, GATES)["lm_head"]


@pytest.mark.parametrize("pattern", ["model.layer.*", "lm_heads", "model.layers.9.mlp"])
def test_a_pattern_that_names_no_point_is_refused(loaded: Any, pattern: str) -> None:
    with pytest.raises(InputError, match=re.escape(pattern)):
        Recorder("lm_head", pattern).require_known(loaded.config)


def test_experts_are_recorded_before_the_scaling_factor(loaded: Any) -> None:
    recorder = recorded(loaded, "model.layers.1.mlp*")
    at = "model.layers.1.mlp"
    total = 2.5 * recorder[f"{at}.experts"] + recorder[f"{at}.shared_experts"]
    assert np.array_equal(recorder[at], total)
