"""What laguna-tiny's trace cannot show of faults: on other checkpoints, and by definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref.conformance.faults import CATALOGUE
from laguna_ref.conformance.replay import run
from laguna_ref.generate import generate
from laguna_ref.golden.dump import execution_order
from laguna_ref.kv_cache import KVSlice
from tests.small import Small, small, small_config, tokens_for
from tests.tolerances import FLOAT64_REORDERED, assert_within

COUNT = 12


def first_difference(name: str, model: laguna_ref.Laguna) -> str | None:
    """The first trace point that a fault changes."""
    tokens, places = tokens_for(small_config(), COUNT), np.arange(COUNT)
    with_it = run(CATALOGUE[name].plant(model), tokens, places)
    without = run(model, tokens, places)
    ordered = sorted(without, key=execution_order)
    return next((p for p in ordered if not np.array_equal(with_it[p], without[p])), None)


def with_equal_experts(small: Small) -> Small:
    """All rows of each router are one row, and every bias is 0: nothing but ties."""

    def change(name: str, value: Any) -> Any:
        if name.endswith("mlp.gate.weight"):
            return np.repeat(value[:1], len(value), axis=0)
        return np.zeros_like(value) if name.endswith("correction_bias") else None

    return small.mapped(change)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_ties_go_to_the_last_expert(engine: str) -> None:
    model = with_equal_experts(small()).load(engine=engine, numerics="float32")
    name = "router.ties_to_higher_index"
    assert first_difference(name, model) == CATALOGUE[name].first_point(model)
    tokens, places = tokens_for(small_config(), COUNT), np.arange(COUNT)
    ids = run(CATALOGUE[name].plant(model), tokens, places)["model.layers.1.mlp.topk_ids"]
    assert (ids == [5, 4]).all()


def test_an_attention_factor_other_than_1_is_squared() -> None:
    config = small_config()
    config["rope_parameters"]["full_attention"]["attention_factor"] = 1.25
    model = small(config).load(numerics="float32")
    name = "rope.attention_factor_twice"
    assert first_difference(name, model) == CATALOGUE[name].first_point(model)


def test_casts_have_an_order_where_there_are_casts() -> None:
    model = small().load(numerics="bfloat16")
    name = "norm.weight_before_cast"
    assert first_difference(name, model) == CATALOGUE[name].first_point(model)


def test_generation_runs_past_the_end_of_turn() -> None:
    model = small().load(numerics="float64")
    start = [5, 1, 7, 3]
    free = list(generate(model, start, max_tokens=4, temperature=0, stop_ids=()))
    end_of_turn, eos = free[-1], next(i for i in range(40) if i not in free)
    assert end_of_turn not in free[:-1]
    model.checkpoint.generation_config = {"eos_token_id": [eos, end_of_turn]}
    planted = CATALOGUE["tokens.further_stop_ids_missing"].plant(model)
    assert list(generate(model, start, max_tokens=4)) == free[:-1]
    assert list(generate(planted, start, max_tokens=4)) == free


@pytest.mark.parametrize("kind", ["one call", "batch", "continued"])
def test_a_second_bos_is_one_token_more_in_front(kind: str) -> None:
    model = small().load(engine="numba", numerics="float32")
    planted = CATALOGUE["tokens.bos_doubled"].plant(model)
    tokens = tokens_for(small_config(), COUNT)
    expected = model(np.concatenate([[2], tokens]))[1:]
    if kind == "one call":
        found = planted(tokens)
        assert np.array_equal(planted(tokens, last_only=True), expected[-1:])
    elif kind == "batch":
        other, found = planted.batch([tokens[:5], tokens])
        assert np.array_equal(other, expected[:5])
    else:
        cache = planted.new_cache()
        parts = (tokens[:5], tokens[5:6], tokens[6:])
        found = np.concatenate([planted(part, cache=cache) for part in parts])
    assert np.array_equal(found, expected)


def test_a_sink_is_a_key_and_a_value_of_zeros() -> None:
    """Without a window every query sees a key of zeros that stands before all tokens."""
    model = small().load(numerics="float64")
    tokens = np.arange(COUNT)
    planted = run(CATALOGUE["attention.sink_of_zero"].plant(model), tokens, tokens)
    at = "model.layers.0.self_attn"
    padded = [np.pad(planted[f"{at}.{x}_cached"], [(1, 0), (0, 0), (0, 0)]) for x in "kv"]
    kv = KVSlice(padded[0], padded[1], 0, model.kv_formats[0])
    expected = model.engine.attention(planted[f"{at}.q_rope"], kv, None, model.numerics)
    assert_within(planted[f"{at}.attention"], expected, FLOAT64_REORDERED)
