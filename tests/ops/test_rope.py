"""Rotary embedding: which dimensions turn, by how much, and what stays untouched."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.numerics import BFLOAT16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops.rope import apply_rope, rope_tables
from laguna_ref.rope_spec import RopeSpec, parse_rope
from tests import naive, tolerances
from tests.small import rope_parameters

HEAD = 8


def spec(raw: dict[str, Any]) -> RopeSpec:
    return parse_rope(raw, HEAD, "", "")


def plain(partial: float = 1.0) -> RopeSpec:
    raw = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": partial}
    return spec(raw)


def heads(tokens: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(tokens, 3, HEAD))


def turned(x: Any, rope: RopeSpec, positions: Any, numerics: Numerics = FLOAT64) -> Any:
    tables = rope_tables(rope, np.asarray(positions), numerics)
    return apply_rope(numerics.cast(x), *tables, numerics)


@given(rope_parameters(HEAD), st.lists(st.integers(0, 10_000), min_size=1, max_size=3))
def test_against_the_naive_one(raw: dict[str, Any], positions: list[int]) -> None:
    x = heads(len(positions))
    frequencies, factor = naive.inverse_frequencies(raw, HEAD), naive.attention_factor(raw)
    expected = [
        [naive.rotate(head.tolist(), position, frequencies, factor) for head in token]
        for token, position in zip(x, positions, strict=True)
    ]
    # Angles of up to 10,000 radians, each off by the roundings of its frequency (naive 8,
    # ours 8) and its product; then cosine, factor, product and sum on both sides.
    error = tolerances.roundings(18 * 10_000 + 10, np.float64)
    tolerances.assert_within(turned(x, spec(raw), positions), expected, error)


@pytest.mark.parametrize("partial", [0.5, 1.0])
def test_a_rotation_keeps_the_length_of_every_pair(partial: float) -> None:
    x, rope = heads(4), plain(partial)
    half = rope.rotary_dim // 2
    y = turned(x, rope, [0, 1, 17, 4000])
    before = np.hypot(x[..., :half], x[..., half : 2 * half])
    after = np.hypot(y[..., :half], y[..., half : 2 * half])
    # cos^2 + sin^2 (2 roundings each), products, sums and two roots.
    tolerances.assert_within(after, before, tolerances.roundings(12, np.float64))


def test_position_zero_turns_nothing() -> None:
    x = heads(1)
    assert np.array_equal(turned(x, plain(), [0]), x)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 5000))
def test_scores_depend_on_the_distance_only(m: int, n: int, shift: int) -> None:
    q, k = heads(1), heads(1, seed=1)
    scores = [np.sum(turned(q, plain(), [m + d]) * turned(k, plain(), [n + d])) for d in (0, shift)]
    bound = float(np.sum(np.abs(q)) * np.max(np.abs(k)))
    error = tolerances.roundings(4 * (5500 + HEAD), np.float64)
    assert abs(scores[0] - scores[1]) <= error * bound


def test_dimensions_beyond_the_rotated_ones_pass_untouched() -> None:
    raw = {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 3.0,
        "partial_rotary_factor": 0.5,
    }
    x = heads(3)
    for numerics in (FLOAT64, FLOAT32, BFLOAT16):
        y = turned(x, spec(raw), [1, 2, 3], numerics)
        assert np.array_equal(y[..., 4:], numerics.cast(x)[..., 4:]), numerics.name


def test_the_attention_factor_scales_rotated_dimensions_only() -> None:
    raw = {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "partial_rotary_factor": 0.5,
    }
    x = heads(3)
    once = turned(x, spec(raw | {"attention_factor": 1.0}), [1, 2, 3])
    twice = turned(x, spec(raw | {"attention_factor": 2.0}), [1, 2, 3])
    assert np.array_equal(twice[..., :4], 2 * once[..., :4])
    assert np.array_equal(twice[..., 4:], once[..., 4:])


def test_pairs_are_halves_apart_not_neighbours() -> None:
    x = np.zeros((1, 1, HEAD))
    x[..., 0] = 1.0
    y = turned(x, plain(), [1])
    assert np.flatnonzero(y).tolist() == [0, HEAD // 2]


@pytest.mark.parametrize("numerics", [FLOAT32, BFLOAT16], ids=lambda n: n.name)
def test_float32_angles_are_the_released_ones(numerics: Numerics) -> None:
    """Position times float32 frequency in float32; the cosine of that, correctly rounded."""
    rope, positions = plain(), np.array([0, 1, 4095, 131071])
    cos, sin = rope_tables(rope, positions, numerics)
    assert cos.dtype == sin.dtype == np.float32
    for t, position in enumerate(positions):
        for j, frequency in enumerate(rope.inv_freq.astype(np.float32)):
            angle = float(np.float32(position) * frequency)
            for table, function in ((cos, np.cos), (sin, np.sin)):
                expected = np.float32(function(angle))
                if numerics is BFLOAT16:
                    expected = np.float32(ml_dtypes.bfloat16(expected))
                assert table[t, j] == expected, (position, j)


def test_bfloat16_rounds_each_product_and_the_sum() -> None:
    def r(value: Any) -> Any:
        return np.asarray(value, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)

    x = r(heads(2))
    cos, sin = (table[:, None, :] for table in rope_tables(plain(), np.array([1, 2]), BFLOAT16))
    a, b = x[..., :4], x[..., 4:]
    expected = np.concatenate([r(r(a * cos) + r(-b * sin)), r(r(b * cos) + r(a * sin))], axis=-1)
    assert np.array_equal(turned(x, plain(), [1, 2], BFLOAT16), expected)
