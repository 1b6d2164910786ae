"""Rotation, gate, sum of experts and the choice of the greatest: the bits of their NumPy twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.engines import numba_engine
from laguna_ref.numerics import Numerics
from laguna_ref.ops import gate, rope
from laguna_ref.ops.experts import sum_of_slots
from numba_kernels import elementwise
from tests.numba_kernels.drawn import ALL_NUMERICS, generator

NUMERICS = pytest.mark.parametrize("numerics", ALL_NUMERICS.values(), ids=lambda n: n.name)
TOKENS = st.sampled_from([1, 2, 7, 65])
SEEDS = st.integers(0, 999)


def drawn(rng: Any, shape: tuple[int, ...], numerics: Numerics) -> Any:
    """Numbers of many sizes, zeros of both signs among them, of a type the numerics would hold."""
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-30, 30, shape)
    x[rng.random(shape) < 0.1] = 0.0
    x[rng.random(shape) < 0.1] *= -1
    return numerics.round_at("linear", numerics.cast(x))


def same(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


@NUMERICS
@given(
    tokens=TOKENS,
    heads=st.integers(1, 9),
    half=st.sampled_from([4, 8, 16, 32]),
    rest=st.sampled_from([0, 4, 8, 64]),
    seed=SEEDS,
)
def test_rope(numerics: Numerics, tokens: int, heads: int, half: int, rest: int, seed: int) -> None:
    rng = generator(seed)
    x = drawn(rng, (tokens, heads, 2 * half + rest), numerics)
    cos, sin = drawn(rng, (tokens, half), numerics), drawn(rng, (tokens, half), numerics)
    ours = numba_engine.apply_rope(x, cos, sin, numerics)
    assert same(ours, rope.apply_rope(x, cos, sin, numerics))


@NUMERICS
@given(
    tokens=TOKENS,
    heads=st.integers(1, 9),
    width=st.sampled_from([1, 4, 8, 128]),
    per_element=st.booleans(),
    seed=SEEDS,
)
def test_gate(
    numerics: Numerics, tokens: int, heads: int, width: int, per_element: bool, seed: int
) -> None:
    rng = generator(seed)
    attention = drawn(rng, (tokens, heads, width), numerics)
    values = drawn(rng, (tokens, heads * width if per_element else heads), numerics)
    ours = numba_engine.apply_gate(attention, values, numerics)
    assert same(ours, gate.apply_gate(attention, values, numerics))


@NUMERICS
@given(tokens=TOKENS, top_k=st.integers(1, 9), width=st.sampled_from([8, 64, 2048]), seed=SEEDS)
def test_sum_of_slots(numerics: Numerics, tokens: int, top_k: int, width: int, seed: int) -> None:
    slots = drawn(generator(seed), (tokens, top_k, width), numerics)
    out = np.empty((tokens, width), numerics.dtype)
    rounds = "experts.sum" in numerics.rounds
    elementwise.add_slots(slots.reshape(-1), tokens, top_k, width, rounds, out.reshape(-1))
    assert same(out, sum_of_slots(slots, numerics))


@given(
    rows=TOKENS,
    width=st.integers(1, 300),
    values=st.integers(1, 40),
    data=st.data(),
    seed=SEEDS,
)
def test_greatest_of_row(rows: int, width: int, values: int, data: Any, seed: int) -> None:
    """With so few different values, most choices are among equals."""
    x = generator(seed).integers(0, values, (rows, width)).astype(np.float32)
    count = data.draw(st.integers(1, width))
    places = np.zeros((rows, count), np.int64)
    elementwise.greatest_of_row(x.reshape(-1), rows, width, count, places.reshape(-1))
    assert np.array_equal(places, np.argsort(-x, axis=1, kind="stable")[:, :count])


def test_what_is_not_a_number_is_never_chosen() -> None:
    x = np.array([np.nan, 1.0, np.inf, np.nan, -np.inf, 2.0])
    places = np.zeros(4, np.int64)
    elementwise.greatest_of_row(x, 1, 6, 4, places)
    assert places.tolist() == [2, 5, 1, 4]
