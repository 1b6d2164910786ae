"""Grouped-query attention: who sees whom, which head reads which, blocks, NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.kv_cache import KVFormat, KVSlice
from laguna_ref.numerics import FLOAT32, FLOAT64, Numerics
from laguna_ref.ops import attention as op
from laguna_ref.ops.attention import attention
from tests import naive, tolerances

FLOAT_CACHE = KVFormat(False, np.float32(1), np.float32(1))


def draw(tokens: int, heads: int, kv_heads: int, cached: int = 0, head_dim: int = 4) -> Any:
    """Queries of the last ``tokens`` and a slice of all keys and values."""
    random = np.random.default_rng([tokens, heads, kv_heads, cached])
    q = random.normal(size=(tokens, heads, head_dim))
    keys, values = random.normal(size=(2, cached + tokens, kv_heads, head_dim))
    return q, KVSlice(keys, values, 0, FLOAT_CACHE)


def error(keys: int, head_dim: int, numerics: Numerics) -> float:
    """Of the values' scale: scores (C + 1), softmax, values; both computations."""
    # A score of up to 30 is off by its own roundings, which the exponential hands on.
    scores = 30 * (head_dim + 1)
    return 2 * tolerances.roundings(scores + 2 * keys + 4, numerics.dtype)


def naively(q: Any, kv: KVSlice, window: int | None) -> Any:
    first = kv.first + len(kv.keys) - len(q)
    out = np.empty_like(q)
    for t in range(len(q)):
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // kv.keys.shape[1])
            low = 0 if window is None else max(0, first + t - window + 1 - kv.first)
            seen = range(low, first + t + 1 - kv.first)
            keys = [kv.keys[s, g].tolist() for s in seen]
            values = [kv.values[s, g].tolist() for s in seen]
            out[t, h] = naive.attend(q[t, h].tolist(), keys, values)
    return out


windows = st.one_of(st.none(), st.integers(1, 8))


@given(
    st.integers(1, 6),
    st.integers(0, 6),
    st.sampled_from([(1, 1), (2, 2), (2, 1), (6, 2)]),
    windows,
    st.sampled_from([FLOAT64, FLOAT32]),
)
def test_against_the_naive_one(
    tokens: int, cached: int, heads: tuple[int, int], window: int | None, numerics: Numerics
) -> None:
    q, kv = draw(tokens, *heads, cached)
    q, kv = (
        numerics.cast(q),
        KVSlice(numerics.cast(kv.keys), numerics.cast(kv.values), 0, kv.format),
    )
    found = attention(q, kv, window, numerics)
    assert found.dtype == numerics.dtype
    tolerances.assert_within(found, naively(q, kv, window), error(len(kv.keys), 4, numerics))


@pytest.mark.parametrize(("window", "seen"), [(None, [0, 1, 2, 3, 4]), (4, [1, 2, 3, 4]), (1, [4])])
def test_the_window_includes_the_querys_own_token(window: int | None, seen: list[int]) -> None:
    """Equal keys give equal probabilities; one-hot values show whose they are."""
    kv = KVSlice(np.zeros((5, 1, 5)), np.eye(5)[:, None, :], 0, FLOAT_CACHE)
    out = attention(np.zeros((1, 1, 5)), kv, window, FLOAT64)[0, 0]
    assert np.flatnonzero(out).tolist() == seen
    assert out[seen].tolist() == [1 / len(seen)] * len(seen)


def test_query_heads_read_key_value_heads_in_runs() -> None:
    """H = 6, G = 2: heads 0 to 2 read the first, 3 to 5 the second."""
    values = np.array([[[1.0], [2.0]]])
    kv = KVSlice(np.zeros((1, 2, 1)), values, 0, FLOAT_CACHE)
    out = attention(np.zeros((1, 6, 1)), kv, None, FLOAT64)
    assert out.ravel().tolist() == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("scores", [1, 7, 40])
def test_blocks_of_queries_do_not_show(
    monkeypatch: pytest.MonkeyPatch, window: int | None, scores: int
) -> None:
    q, kv = draw(9, 4, 2, cached=5)
    whole = attention(q, kv, window, FLOAT64)
    monkeypatch.setattr(op, "MAX_SCORES", scores)
    assert op._block_stop(0, 9, 2, 14) < 9, "the case has only one block"
    blocks = attention(q, kv, window, FLOAT64)
    tolerances.assert_within(blocks, whole, error(14, 4, FLOAT64))


def test_a_slice_may_begin_anywhere_in_the_sequence() -> None:
    q, kv = draw(2, 2, 1, cached=5)
    later = KVSlice(kv.keys[3:], kv.values[3:], 3, kv.format)
    tolerances.assert_within(
        attention(q, later, 3, FLOAT64), attention(q, kv, 3, FLOAT64), error(7, 4, FLOAT64)
    )


@pytest.mark.parametrize("window", [None, 2])
def test_nan_in_a_later_key_has_no_influence(window: int | None) -> None:
    q, kv = draw(4, 2, 1)
    whole = attention(q, kv, window, FLOAT64)
    kv.keys[3] = np.nan
    assert np.array_equal(attention(q, kv, window, FLOAT64)[:3], whole[:3])


def test_nan_in_a_key_behind_the_window_has_no_influence() -> None:
    q, kv = draw(4, 2, 1)
    whole = attention(q, kv, 2, FLOAT64)
    kv.keys[0] = np.nan
    assert np.array_equal(attention(q, kv, 2, FLOAT64)[2:], whole[2:])


@pytest.mark.parametrize("size", [1e4, 1e150])
def test_great_scores_do_not_overflow(size: float) -> None:
    q, kv = draw(3, 2, 1)
    assert np.isfinite(attention(q * size, kv, None, FLOAT64)).all()


def test_fp8_keys_and_values_are_read_with_their_own_scales() -> None:
    codes = np.array([0x38, 0xB8, 0x7E, 0x00], dtype=np.uint8).reshape(2, 1, 2)  # 1 -1 448 0
    kv = KVSlice(codes, codes, 0, KVFormat(True, np.float32(0.25), np.float32(0.5)))
    wide = [[[1.0, -1.0]], [[448.0, 0.0]]]
    same = KVSlice(np.array(wide) * 0.25, np.array(wide) * 0.5, 0, FLOAT_CACHE)
    q = np.array([[[0.1, -0.2]]])
    found, expected = (attention(q, x, None, FLOAT64) for x in (kv, same))
    assert np.array_equal(found, expected)
