"""Timing each operation changes nothing but the clock."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from laguna_ref.bench.operations import OTHER, split, timing_engine, watching
from laguna_ref.engines import numpy_engine
from tests.small import small, small_config, tokens_for

CONFIG = small_config()
EXPECTED = {
    "embed", "rms_norm", "q_proj", "k_proj", "v_proj", "g_proj", "o_proj", "lm_head",
    "rope_tables", "apply_rope", "attention", "attention (sliding)", "gate_values", "apply_gate",
    "dense_mlp", "shared_experts", "route", "experts", "combine", "add",
}  # fmt: skip


def test_every_operation_is_timed_under_its_name_and_the_logits_are_the_same() -> None:
    model = small().load()
    tokens = tokens_for(CONFIG, 6)
    plain = model(tokens)
    with watching(model) as seconds:
        watched = model(tokens)
    assert np.array_equal(plain, watched)
    assert set(seconds) == EXPECTED
    assert model.engine is numpy_engine


def test_a_tied_head_goes_by_its_own_name() -> None:
    model = small(small_config(tie_word_embeddings=True)).load()
    with watching(model) as seconds:
        model([1])
    assert set(seconds) == EXPECTED


def test_the_engine_is_put_back_after_an_error() -> None:
    model = small().load()
    with pytest.raises(RuntimeError), watching(model):
        raise RuntimeError
    assert model.engine is numpy_engine


def test_calls_add_up() -> None:
    ticks = itertools.count()
    seconds = dict.fromkeys(EXPECTED, 0.0)
    engine = timing_engine(numpy_engine, seconds, lambda: float(next(ticks)))
    model = small().load()
    model.engine = engine
    model([1])
    assert seconds["rms_norm"] == 3 * 4 + 1
    assert seconds["attention"] == 1
    assert seconds["attention (sliding)"] == 2


def test_the_parts_are_the_whole_and_the_greatest_comes_first() -> None:
    model = small().load()
    calls = []
    parts = split(model, lambda: model([1, 2]), 3, lambda: calls.append(1))
    assert len(calls) == 3
    assert set(parts) == EXPECTED | {OTHER}
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert all(seconds > 0 for seconds in parts.values())
