"""Attention straight over the cache: types, windows, head sizes, and no trace of any tiling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.engines import numba_engine
from laguna_ref.kv_cache import KVFormat, KVSlice
from laguna_ref.numerics import BF16, BFLOAT16, FLOAT32, FLOAT64, Numerics
from laguna_ref.ops import attention as op
from laguna_ref.ops.fp8 import fp8_encode
from numba_kernels import rows
from tests import tolerances
from tests.numba_kernels import definition
from tests.numba_kernels.drawn import ALL_NUMERICS, activations

plain = op.attention

FLOAT_CACHE = KVFormat(False, np.float32(1), np.float32(1))
FP8_CACHE = KVFormat(True, np.float32(0.0078125), np.float32(0.01171875))
NUMERICS = pytest.mark.parametrize("numerics", ALL_NUMERICS.values(), ids=lambda n: n.name)


def case(
    numerics: Numerics, tokens: int, cached: int, heads: int, kv_heads: int, head_dim: int,
    cache: str = "float", first: int = 0, seed: int = 0,
) -> tuple[Any, KVSlice]:  # fmt: skip
    """Queries of the last ``tokens`` of ``cached + tokens`` keys and values."""
    q = activations(numerics, tokens, heads, head_dim, seed=seed)
    shape = (2, cached + tokens, kv_heads, head_dim)
    keys, values = activations(numerics, *shape, seed=seed + 1)
    if cache == "fp8":
        stored = FP8_CACHE
        keys = fp8_encode(keys, stored.k_scale, "k")
        values = fp8_encode(values, stored.v_scale, "v")
    else:
        stored = FLOAT_CACHE
        keys, values = keys.astype(numerics.cache_dtype), values.astype(numerics.cache_dtype)
    return q, KVSlice(keys, values, first, stored)


def error(q: Any, kv: KVSlice, numerics: Numerics) -> float:
    """Of the values' scale: scores, exponentials and their sum, quotient, weighted sum, twice.

    A score is off by its roundings times the sum of magnitudes it is made of; the exponential
    hands that on as a relative error, to a probability and to the sum it is divided by.
    """
    keys, _ = decoded(kv, numerics)
    group = q.shape[1] // keys.shape[1]
    spread = np.abs(np.repeat(keys, group, axis=1)).max(axis=0)  # [H, C]
    magnitude = float((np.abs(q) * spread).sum(axis=-1).max()) * q.shape[2] ** -0.5
    head_dim, count = q.shape[2], len(keys)
    result = 2 * magnitude * tolerances.roundings(head_dim + 2, numerics.dtype)
    result += tolerances.roundings(2 * count + 12, numerics.dtype)
    return 2 * result


def decoded(kv: KVSlice, numerics: Numerics) -> tuple[Any, Any]:
    pairs = [kv.decode(0, len(kv.keys), g, numerics) for g in range(kv.keys.shape[1])]
    return np.stack([k for k, _ in pairs], axis=1), np.stack([v for _, v in pairs], axis=1)


def assert_near_the_plain_one(q: Any, kv: KVSlice, window: int | None, numerics: Numerics) -> None:
    found, expected = (f(q, kv, window, numerics) for f in (numba_engine.attention, plain))
    assert found.shape == q.shape
    assert found.dtype == q.dtype
    _, values = decoded(kv, numerics)
    scale = float(np.abs(values).max())
    if numerics.rounds:
        _, most = tolerances.BFLOAT16_OF_SUMS["attention"]
        allowed = most * float(ml_dtypes.finfo(BF16).eps) * scale
    else:
        allowed = error(q, kv, numerics) * scale
    assert np.abs(found - expected).max() <= allowed


windows = st.one_of(st.none(), st.integers(1, 70))


@NUMERICS
@pytest.mark.parametrize("cache", ["float", "fp8"])
@given(
    tokens=st.one_of(st.integers(1, 9), st.sampled_from([63, 64, 65, 130])),
    cached=st.sampled_from([0, 1, 7, 8, 62, 63, 64, 65, 127, 200]),
    heads=st.sampled_from([(1, 1), (2, 2), (2, 1), (6, 2), (8, 1), (3, 3)]),
    head_dim=st.sampled_from([1, 4, 8, 9, 15, 16, 64, 67, 72, 128, 130]),
    window=windows,
    seed=st.integers(0, 99),
)
def test_against_the_plain_one(
    numerics: Numerics, cache: str, tokens: int, cached: int, heads: tuple[int, int],
    head_dim: int, window: int | None, seed: int,
) -> None:  # fmt: skip
    q, kv = case(numerics, tokens, cached, *heads, head_dim, cache, seed=seed)
    assert_near_the_plain_one(q, kv, window, numerics)


@pytest.mark.parametrize("window", [None, 1, 64, 100])
def test_bfloat16_is_equal_but_for_rare_turned_roundings(window: int | None) -> None:
    q, kv = case(BFLOAT16, 150, 60, 6, 2, 16)
    found, expected = (f(q, kv, window, BFLOAT16) for f in (numba_engine.attention, plain))
    share, _ = tolerances.BFLOAT16_OF_SUMS["attention"]
    assert np.mean(found != expected) <= share


@pytest.mark.parametrize("numerics", [FLOAT32, BFLOAT16], ids=lambda n: n.name)
@pytest.mark.parametrize("stored", [np.float32, np.float64, BF16])
def test_a_cache_of_another_float_type(numerics: Numerics, stored: Any) -> None:
    q, kv = case(numerics, 5, 70, 4, 2, 24)
    kv = replace(kv, keys=kv.keys.astype(stored), values=kv.values.astype(stored))
    assert_near_the_plain_one(q, kv, None, numerics)
    assert_near_the_plain_one(q, kv, 9, numerics)


def exponentials(x: Any) -> Any:
    """The kernel's own."""
    arguments = np.append(x, np.zeros(-len(x) % 8, x.dtype))
    e = np.empty_like(arguments)
    rows.exp(arguments, e)
    return e[: len(x)]


def as_defined(q: Any, kv: KVSlice, window: int | None, scaling: Any) -> Any:
    """One token at a time."""
    out = np.empty_like(q)
    first = kv.first + len(kv.keys) - len(q)
    group = q.shape[1] // kv.keys.shape[1]
    for t, h in np.ndindex(q.shape[:2]):
        low = kv.first if window is None else max(kv.first, first + t + 1 - window)
        seen = slice(low - kv.first, first + t + 1 - kv.first)
        keys, values = kv.keys[seen, h // group], kv.values[seen, h // group]
        scores = np.array([definition.dot(q[t, h], key, q.dtype) * scaling for key in keys])
        out[t, h] = definition.attended(scores, values, low, exponentials)
    return out


@pytest.mark.parametrize("numerics", [FLOAT32, FLOAT64], ids=lambda n: n.name)
@pytest.mark.parametrize(
    ("tokens", "cached", "first", "window"),
    [
        (1, 140, 0, None),
        (3, 70, 0, None),
        (2, 130, 61, 75),
        (5, 5, 59, 3),
        (1, 0, 0, 1),
        (1, 100, 4040, None),
        (3, 90, 4050, 70),
        (2, 4130, 70, None),
    ],
)
def test_every_sum_is_in_the_defined_order(
    numerics: Numerics, tokens: int, cached: int, first: int, window: int | None
) -> None:
    """Lanes and blocks follow absolute positions, wherever the slice begins."""
    q, kv = case(numerics, tokens, cached, 2, 1, 9, first=first)
    expected = as_defined(q, kv, window, numerics.dtype.type(9**-0.5))
    assert np.array_equal(numba_engine.attention(q, kv, window, numerics), expected)


def part_of(q: Any, kv: KVSlice, start: int, stop: int, low: int = 0) -> tuple[Any, KVSlice]:
    """Queries ``start`` to ``stop`` with what has been cached by then, from ``low`` on."""
    end = len(kv.keys) - len(q) + stop
    cut = KVSlice(kv.keys[low:end], kv.values[low:end], kv.first + low, kv.format)
    return q[start:stop], cut


@NUMERICS
@pytest.mark.parametrize("cache", ["float", "fp8"])
@given(
    tokens=st.integers(1, 150),
    cached=st.integers(0, 150),
    heads=st.sampled_from([(2, 1), (6, 2), (1, 1)]),
    window=windows,
    data=st.data(),
)
def test_chunks_have_the_bits_of_the_whole(
    numerics: Numerics, cache: str, tokens: int, cached: int, heads: tuple[int, int],
    window: int | None, data: st.DataObject,
) -> None:  # fmt: skip
    """Whatever the chunk, and whatever the ring has forgotten behind the window."""
    q, kv = case(numerics, tokens, cached, *heads, 8, cache)
    whole = numba_engine.attention(q, kv, window, numerics)
    start = 0
    while start < tokens:
        stop = data.draw(st.one_of(st.just(start + 1), st.integers(start + 1, tokens)), "stop")
        needed = 0 if window is None else max(0, cached + start + 1 - window)
        low = data.draw(st.integers(0, needed), "first cached")
        part = part_of(q, kv, start, stop, low)
        found = numba_engine.attention(*part, window, numerics)
        assert np.array_equal(found, whole[start:stop]), (start, stop, low)
        start = stop


def test_a_window_beyond_the_sequence_is_none() -> None:
    q, kv = case(FLOAT32, 30, 50, 4, 2, 16)
    none = numba_engine.attention(q, kv, None, FLOAT32)
    for window in (80, 81, 1000, 2**40):
        assert np.array_equal(numba_engine.attention(q, kv, window, FLOAT32), none)


@NUMERICS
def test_window_one_gives_the_tokens_own_value(numerics: Numerics) -> None:
    q, kv = case(numerics, 70, 3, 6, 2, 13)
    found = numba_engine.attention(q, kv, 1, numerics)
    own = np.repeat(kv.values[3:].astype(numerics.dtype), 3, axis=1)
    assert np.array_equal(found, own)


@pytest.mark.parametrize("window", [None, 512])
@pytest.mark.parametrize("cache", ["float", "fp8"])
def test_five_thousand_cached_positions(cache: str, window: int | None) -> None:
    for tokens in (1, 70):
        q, kv = case(FLOAT32, tokens, 5000 - tokens, 8, 2, 16, cache)
        assert_near_the_plain_one(q, kv, window, FLOAT32)


def test_more_queries_of_a_group_than_a_tile_takes() -> None:
    q, kv = case(FLOAT32, 3, 4, 200, 1, 8)
    assert_near_the_plain_one(q, kv, None, FLOAT32)


@pytest.mark.parametrize("window", [None, 3])
def test_a_later_key_or_one_behind_the_window_may_be_anything(window: int | None) -> None:
    """A finite value of any size: its probability is zero, not small."""
    q, kv = case(FLOAT32, 20, 10, 2, 1, 8)
    whole = numba_engine.attention(q, kv, window, FLOAT32)
    keys, values = kv.keys.copy(), kv.values.copy()
    keys[20:], values[20:] = 1e18, -3e38
    if window:
        keys[:7], values[:7] = -1e18, 3e38
    found = numba_engine.attention(q, replace(kv, keys=keys, values=values), window, FLOAT32)
    assert np.array_equal(found[:10], whole[:10])


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e18])
def test_scores_of_any_size(size: float) -> None:
    """Equal probabilities at one end; at the other the greatest score takes everything."""
    q, kv = case(FLOAT32, 6, 60, 2, 1, 8)
    q = q * np.float32(size)
    found, expected = (f(q, kv, None, FLOAT32) for f in (numba_engine.attention, plain))
    assert np.isfinite(found).all()
    if size < 1e9:
        scale = float(np.abs(kv.values).max())
        assert np.abs(found - expected).max() <= error(q, kv, FLOAT32) * scale
    else:
        tolerances.assert_within(found, expected, tolerances.roundings(8, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_where_it_is_seen_and_nowhere_else(bad: float) -> None:
    q, kv = case(FLOAT32, 12, 0, 2, 1, 8)
    kv.keys[5, 0, 3] = bad
    q[:, :, 3] = np.abs(q[:, :, 3]) + 1  # an infinite key: infinite scores
    found = numba_engine.attention(q, kv, None, FLOAT32)
    with np.errstate(invalid="ignore"):
        expected = plain(q, kv, None, FLOAT32)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found[5:]).all()
    assert np.isfinite(found[:5]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("tokens", "at"), [(1, 10), (1, 4090), (1, 4095), (1, 4096), (1, 4999),
                                            (300, 4095), (300, 4500)])  # fmt: skip
def test_scores_that_are_no_numbers_show_whatever_segment_they_are_in(
    bad: float, tokens: int, at: int
) -> None:
    """Also where a segment has no other score, and where no other lane of a vector is seen."""
    cached = 5000 - tokens if at != 4096 else 4096
    q, kv = case(FLOAT32, tokens, cached, 2, 1, 8)
    kv.keys[at, 0, 3] = bad
    q[:, :, 3] = np.abs(q[:, :, 3]) + 1
    found = numba_engine.attention(q, kv, None, FLOAT32)
    with np.errstate(invalid="ignore"):
        expected = plain(q, kv, None, FLOAT32)
    assert np.array_equal(np.isnan(found), np.isnan(expected))


def test_overflowing_products_of_finite_numbers_show() -> None:
    for cached in (4095, 4096, 4999):
        q, kv = case(FLOAT32, 1, cached, 1, 1, 8)
        q[:], kv.keys[4095] = 0, 0
        q[:, :, :2], kv.keys[4095, :, 0], kv.keys[4095, :, 1] = 1e20, 1e20, -1e20
        assert np.isnan(numba_engine.attention(q, kv, None, FLOAT32)).all(), cached


def test_all_finite_codes_of_the_cache() -> None:
    """Window 1 hands values through: every code times the scale, in every numerics."""
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    keys = np.zeros((len(codes), 1, 8), np.uint8)
    values = np.repeat(codes[:, None, None], 8, axis=2)
    kv = KVSlice(keys, values, 0, FP8_CACHE)
    for numerics in (FLOAT32, FLOAT64, BFLOAT16):
        q = np.zeros((len(codes), 1, 8), numerics.dtype)
        _, expected = kv.decode(0, len(codes), 0, numerics)
        found = numba_engine.attention(q, kv, 1, numerics)[:, 0]
        assert np.array_equal(found, expected), numerics.name


def test_no_tokens() -> None:
    q, kv = case(FLOAT32, 0, 4, 2, 1, 8)
    assert numba_engine.attention(q, kv, None, FLOAT32).shape == (0, 2, 8)
