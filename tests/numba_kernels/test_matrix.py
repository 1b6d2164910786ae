"""Products with stored weights: every format, odd shapes, and the order of each sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.checkpoint import DenseWeight
from laguna_ref.engines import numba_engine
from laguna_ref.engines.kernel_weights import kernel_weight
from laguna_ref.numerics import BFLOAT16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops.linear import linear as plain
from numba_kernels import formats
from tests import tolerances
from tests.numba_kernels import definition
from tests.numba_kernels.drawn import (
    ALL_NUMERICS,
    DENSE,
    DEQUANTISED,
    FORMATS,
    PACKED,
    activations,
    dense_twin,
    weight,
)

NATIVE = 64
"""INT4 columns that fill whole words in whole vectors: read in place, not through a copy."""


def assert_near_the_plain_one(x: Any, w: Any, numerics: Numerics) -> None:
    found, expected = numba_engine.linear(x, w, numerics), plain(x, w, numerics)
    assert found.shape == expected.shape
    assert found.dtype == numerics.dtype
    size = np.abs(x) @ np.abs(dense_twin(w, numerics)).T
    bound = tolerances.fixed_order_dot(w.shape[1], numerics.dtype) * size
    if numerics.rounds:
        bound = bound + tolerances.roundings(1, "bfloat16") * (np.abs(found) + np.abs(expected))
    assert (np.abs(found - expected) <= bound).all(), w.name


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Tokens, rows, columns and group: around every multiple that a kernel works in."""
    tokens = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 65]))
    rows = draw(st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 70]))
    group = draw(st.sampled_from([1, 2, 4, 5, 8, 12, 16, 24, 32, 64]))
    groups = draw(st.integers(1, 6))
    columns = draw(st.sampled_from([group * groups, group * NATIVE]))
    return tokens, rows, columns, group


@pytest.mark.parametrize("stored", FORMATS)
@given(shapes(), st.sampled_from(list(DEQUANTISED)), st.integers(0, 99))
def test_any_shape_and_format_against_the_plain_one(
    stored: str, shape: tuple[int, int, int, int], name: str, seed: int
) -> None:
    tokens, rows, columns, group = shape
    numerics = DEQUANTISED[name]
    w = weight(stored, rows, columns, seed, group)
    assert_near_the_plain_one(activations(numerics, tokens, columns, seed=seed), w, numerics)


@pytest.mark.parametrize("bits", PACKED)
@pytest.mark.parametrize("scales", [np.float32, np.float16])
@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16"])
def test_scales_of_other_types(bits: str, scales: Any, name: str) -> None:
    numerics = ALL_NUMERICS[name]
    w = weight(bits, 9, 192, group=24, scales=scales)
    for tokens in (1, 3):
        assert_near_the_plain_one(activations(numerics, tokens, 192), w, numerics)


@pytest.mark.parametrize("name", DEQUANTISED)
@pytest.mark.parametrize("stored", FORMATS)
def test_only_the_numbers_count_not_how_they_are_stored(stored: str, name: str) -> None:
    """A weight and its dequantised copy: equal bits, one token and many."""
    numerics = DEQUANTISED[name]
    already_rounded = replace(numerics, rounds=numerics.rounds - {"weight"})
    w = weight(stored, 21, 3 * NATIVE, group=24)
    dense = dense_twin(w, numerics)
    for tokens in (1, 5):
        x = activations(numerics, tokens, 3 * NATIVE)
        found = numba_engine.linear(x, w, numerics)
        copy = DenseWeight("dense", dense.astype(np.float32))
        assert np.array_equal(copy.array, dense), "float32 holds every weight of these formats"
        assert np.array_equal(found, numba_engine.linear(x, copy, already_rounded)), w.name


def test_formats_are_read_in_place() -> None:
    """Else the tests above would test copies."""
    kinds = {
        ("bf16", "float32"): formats.Bf16, ("f32", "float32"): formats.F32,
        ("f32", "bfloat16"): formats.F32Rounded, ("int4", "float32"): formats.Int4,
        ("int4", "bfloat16"): formats.Int4Rounded, ("int8", "float64"): formats.Int8,
        ("int8", "bfloat16"): formats.Int8Rounded,
    }  # fmt: skip
    for (stored, name), kind in kinds.items():
        w = weight(stored, 4, 3 * NATIVE, group=24)
        seen = kernel_weight(w, ALL_NUMERICS[name])
        assert type(seen) is kind
        array = w.array if isinstance(w, DenseWeight) else w.packed
        assert seen.data == array.ctypes.data


@pytest.mark.parametrize("numerics", [FLOAT32, FLOAT64], ids=lambda n: n.name)
@pytest.mark.parametrize(("tokens", "columns"), [(1, 40), (2, 40), (3, 21), (8, 16), (9, 9)])
def test_the_order_of_the_sums_is_the_defined_one(
    numerics: Numerics, tokens: int, columns: int
) -> None:
    w = weight("f32", 6, columns)
    x = activations(numerics, tokens, columns)
    assert isinstance(w, DenseWeight)
    expected = definition.product(x, w.array.astype(numerics.dtype))
    assert np.array_equal(numba_engine.linear(x, w, numerics), expected)


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_adversarial_order(tokens: int, dtype: Any) -> None:
    """Numbers whose sum is another in most other orders, or without fused multiply-adds.

    2^60 and then -2^60 fall to lane 0 and swallow only what that lane takes in between; lane 1
    holds a product that float32 cannot, and a term so small that only the fused sum keeps it.
    """
    big = 2.0**60
    row = [big, 1, 0, 0, 0, 0, 0, 0, -big, 2.0**-30, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5]
    w = DenseWeight("w", np.array([row], np.float32))
    x = np.ones((tokens, len(row)), dtype)
    x[:, 9] = 2.0**-30
    x[:, 1] = 1 + 2.0**-23
    numerics = FLOAT32 if dtype is np.float32 else FLOAT64
    found = numba_engine.linear(x, w, numerics)
    assert np.array_equal(found, definition.product(x, w.array.astype(dtype)))


@pytest.mark.parametrize("stored", FORMATS)
def test_bfloat16_rounds_the_float32_sum_once(stored: str) -> None:
    """Weights rounded first, then one float32 sum, then one rounding."""
    w = weight(stored, 10, NATIVE, group=32)
    dense = DenseWeight("dense", dense_twin(w, BFLOAT16).astype(np.float32))
    for tokens in (1, 4):
        x = activations(BFLOAT16, tokens, NATIVE)
        single = numba_engine.linear(x, dense, FLOAT32)
        found = numba_engine.linear(x, w, BFLOAT16)
        assert np.array_equal(found, BFLOAT16.round_at("linear", single))


@pytest.mark.parametrize("numerics", ALL_NUMERICS.values(), ids=lambda n: n.name)
@pytest.mark.parametrize("stored", ["bf16", "int4"])
def test_each_token_by_itself_has_the_same_bits(stored: str, numerics: Numerics) -> None:
    w = weight(stored, 37, NATIVE, group=16)
    x = activations(numerics, 131, NATIVE)
    whole = numba_engine.linear(x, w, numerics)
    assert np.array_equal(whole, np.concatenate([_one(x, i, w, numerics) for i in range(len(x))]))
    for start, stop in [(0, 2), (3, 6), (5, 12), (1, 66), (64, 131)]:
        part = numba_engine.linear(x[start:stop], w, numerics)
        assert np.array_equal(part, whole[start:stop]), f"tokens {start} to {stop}"


def _one(x: Any, token: int, w: Any, numerics: Numerics) -> Any:
    return numba_engine.linear(x[token : token + 1], w, numerics)


@pytest.mark.parametrize("stored", DENSE)
@pytest.mark.parametrize("tokens", [1, 3])
def test_infinities_and_nan_stay_in_their_row(stored: str, tokens: int) -> None:
    w = weight(stored, 9, 13)
    assert isinstance(w, DenseWeight)
    w.array[2, 12], w.array[5, 0] = np.inf, np.nan
    found = numba_engine.linear(activations(FLOAT32, tokens, 13), w, FLOAT32)
    assert np.isinf(found[:, 2]).all()
    assert np.isnan(found[:, 5]).all()
    assert np.isfinite(np.delete(found, [2, 5], axis=1)).all()


def test_no_tokens_give_no_rows() -> None:
    w = weight("bf16", 5, 16)
    assert numba_engine.linear(np.empty((0, 16), np.float32), w, FLOAT32).shape == (0, 5)
