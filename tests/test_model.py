"""The forward pass against its naive twin, and what the model refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from laguna_ref import Laguna, Recorder
from laguna_ref.errors import CacheError, InputError, NonFiniteError
from tests import naive, tolerances
from tests.small import Small, models, replaced, small, small_config, tokens_for, uniform_config


def compare(model: Small, tokens: Any, numerics: str, kv_cache: str = "checkpoint") -> None:
    """Every trace point of a run against the naive one."""
    loaded = model.load(numerics=numerics, kv_cache=kv_cache)
    fp8 = loaded.kv_formats[0].fp8
    expected, margin = naive.forward(model.config, model.values, tokens.tolist(), fp8=fp8)
    last = len(tokens) if numerics == "float32" else 0
    bounds = (loaded.config, len(tokens), numerics, last)
    assume(margin > tolerances.router_margin(*bounds))
    recorder = Recorder()
    logits = loaded(tokens, trace=recorder)
    assert logits.dtype == np.dtype(numerics)
    assert set(recorder) == set(expected)
    error = tolerances.model_error(*bounds)
    for name in recorder:
        if name.endswith("topk_ids"):
            assert recorder[name].tolist() == expected[name].tolist(), name
        else:
            value = expected[name].reshape(recorder[name].shape)
            tolerances.assert_within(recorder[name], value, error, name, unit=tolerances.UNIT)


@given(models(), st.integers(1, 9), st.integers(0, 99))
def test_float64_agrees_with_the_naive_forward_pass(model: Small, count: int, seed: int) -> None:
    compare(model, tokens_for(model.config, count, seed), "float64")


@given(models(), st.integers(1, 9), st.integers(0, 99))
def test_float32_agrees_with_the_naive_forward_pass(model: Small, count: int, seed: int) -> None:
    # A float cache: float32 noise would tip an FP8 rounding now and then.
    compare(model, tokens_for(model.config, count, seed), "float32", "float")


@pytest.fixture(scope="module")
def loaded() -> Laguna:
    return small().load(numerics="float64")


def test_last_only_is_the_last_row(loaded: Laguna) -> None:
    tokens = tokens_for(loaded.config.raw, 7)
    last = loaded(tokens, last_only=True)
    error = tolerances.model_error(loaded.config, 7, np.float64)
    tolerances.assert_within(last, loaded(tokens)[-1:], error)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_tokens_of_any_integer_type(loaded: Laguna, dtype: Any) -> None:
    tokens = tokens_for(loaded.config.raw, 4)
    assert np.array_equal(loaded(tokens.astype(dtype)), loaded(tokens))
    assert np.array_equal(loaded(tokens.tolist()), loaded(tokens))


BAD_TOKENS = [
    ([], "empty"),
    (3, r"shape \(\)"),
    ([[1, 2]], "shape"),
    ([[1, 2], [3]], "tokens"),
    ([1.0], "float64"),
    ([True], "bool"),
    ("abc", "tokens"),
    (None, "tokens"),
    ([10**30], "tokens"),
    ([0, 40], "token 1 .*0 to 39; found 40"),
    ([-1], "found -1"),
    (list(range(20)) * 26, "max_position_embeddings.*512.*520"),
]


@pytest.mark.parametrize(("tokens", "message"), BAD_TOKENS)
def test_bad_tokens_are_refused(loaded: Laguna, tokens: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(tokens)


@pytest.mark.parametrize(
    "positions", [[0], [0, 1, 2], [[0, 1]], [0.0, 1.0], [-1, 0], [0, 512], [[0], [1, 2]], "ab"]
)
def test_bad_positions_are_refused(loaded: Laguna, positions: Any) -> None:
    with pytest.raises(InputError, match="position"):
        loaded([1, 2], positions=positions)


def test_the_cache_counts_towards_max_position_embeddings() -> None:
    model = small(uniform_config(1, mlp="dense", max_position_embeddings=6)).load()
    cache = model.new_cache()
    model([1, 2, 3, 4], cache=cache)
    with pytest.raises(InputError, match="at most 6; found 4 cached and 3 new"):
        model([1, 2, 3], cache=cache)
    model([1, 2], cache=cache)
    assert cache.length == 6


def test_given_positions_turn_the_angles_only() -> None:
    """Naively with the same positions; the window still counts places in the sequence."""
    model = small()
    tokens, positions = tokens_for(model.config, 6), [300, 7, 7, 8, 0, 511]
    expected, _ = naive.forward(model.config, model.values, tokens.tolist(), positions=positions)
    found = model.float64(tokens, positions=positions)
    error = tolerances.model_error(model.float64.config, 6, np.float64, last=511)
    tolerances.assert_within(found, expected["lm_head"], error)


def test_default_positions_continue_the_cache(loaded: Laguna) -> None:
    tokens = tokens_for(loaded.config.raw, 5)
    first, second = loaded.new_cache(), loaded.new_cache()
    for cache in (first, second):
        loaded(tokens[:3], cache=cache)
    given = loaded(tokens[3:], cache=first, positions=[3, 4])
    assert np.array_equal(given, loaded(tokens[3:], cache=second))


class BrokenError(Exception):
    """Raised by a replaced operation."""


def test_a_failing_forward_leaves_the_cache_as_it_was(loaded: Laguna) -> None:
    tokens = tokens_for(loaded.config.raw, 14)
    calls = 0

    def combine(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:  # the second sparse layer is the model's last
            raise BrokenError
        return loaded.engine.combine(*arguments)

    broken = replaced(loaded, combine=combine)
    cache = loaded.new_cache()
    loaded(tokens[:5], cache=cache)
    for chunk in (tokens[5:6], tokens[5:12], tokens[::-1]):
        with pytest.raises(BrokenError):
            broken(chunk, cache=cache)
        assert cache.length == 5
    error = tolerances.model_error(loaded.config, 14, np.float64)
    after = loaded(tokens[5:], cache=cache)
    tolerances.assert_within(after, loaded(tokens)[5:], error, "after a failed forward pass")


def test_a_refused_call_leaves_the_cache_as_it_was(loaded: Laguna) -> None:
    cache = loaded.new_cache()
    loaded([1, 2], cache=cache)
    for options in ({"tokens": [99]}, {"tokens": [1], "positions": [-1]}):
        with pytest.raises(InputError):
            loaded(**options, cache=cache)  # type: ignore[arg-type]
    assert cache.length == 2


@pytest.mark.parametrize(
    "other",
    [
        small(small_config(sliding_window=5)).load(numerics="float64").new_cache(),
        small(uniform_config(2)).load(numerics="float64").new_cache(),
        small().load(numerics="float32").new_cache(),
        small().load(numerics="float64", kv_cache="fp8").new_cache(),
        small().load(numerics="float64", kv_cache="fp8", kv_cache_skip_layers=[0]).new_cache(),
    ],
    ids=["window", "layers", "type", "fp8", "fp8 in part"],
)
def test_a_cache_of_another_model_is_refused(loaded: Laguna, other: Any) -> None:
    with pytest.raises(CacheError, match="cache"):
        loaded([1], cache=other)


def test_a_nan_is_named_by_layer_token_and_channel() -> None:
    model = small()
    name = "model.layers.1.mlp.shared_expert.down_proj.weight"
    stored = dict(model.stored)
    stored[name] = stored[name].copy()
    stored[name][5, 0] = np.nan
    poisoned = Small(model.config, model.values, stored).load(numerics="float64")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1: token 0, channel 5"):
        poisoned([1, 2, 3])


def test_threads_do_not_change_the_logits_beyond_rounding() -> None:
    model = small()
    tokens = tokens_for(model.config, 6)
    one, two = (model.load(numerics="float64", threads=n)(tokens) for n in (1, 2))
    error = tolerances.model_error(model.float64.config, 6, np.float64)
    tolerances.assert_within(one, two, error)
