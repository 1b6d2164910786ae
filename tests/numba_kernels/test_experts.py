"""The routed experts: bit for bit the sum of single experts, however tokens are sorted."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laguna_ref.engines import numba_engine
from laguna_ref.errors import CheckpointError
from laguna_ref.numerics import FLOAT32, FLOAT64, Numerics
from laguna_ref.ops import experts as op
from laguna_ref.ops.experts import experts as plain
from laguna_ref.weights import MLPWeights
from tests import tolerances
from tests.numba_kernels.drawn import (
    ALL_NUMERICS,
    DEQUANTISED,
    FORMATS,
    activations,
    expert,
    generator,
    weight,
)
from tests.numba_kernels.test_rows import mlp_error

NUMERICS = pytest.mark.parametrize("numerics", ALL_NUMERICS.values(), ids=lambda n: n.name)


def one_by_one(
    x: Any, ids: Any, weights: Any, all_experts: list[MLPWeights], numerics: Numerics
) -> Any:
    """Each token through each of its experts by itself, added in top-k order."""
    out = np.empty_like(x)
    for t in range(len(x)):
        slots = [
            numerics.round_at(
                "experts.weighted",
                numba_engine.mlp(x[t : t + 1], all_experts[e], numerics) * share,
            )
            for e, share in zip(ids[t].tolist(), weights[t], strict=True)
        ]
        out[t] = op.sum_of_slots(np.stack(slots, axis=1), numerics)[0]
    return out


def drawn_routing(
    tokens: int, count: int, top_k: int, favourites: int, numerics: Numerics, seed: int = 0
) -> tuple[Any, Any]:
    """Distinct experts a token, the first from the first ``favourites``: uneven loads."""
    random = generator(tokens, count, top_k, seed)
    ids = np.array([random.permutation(count)[:top_k] for _ in range(tokens)], np.int64)
    for row in ids:
        first = random.integers(0, favourites)
        row[np.flatnonzero(row == first)] = row[0]
        row[0] = first
    weights = random.random((tokens, top_k)).astype(numerics.dtype)
    return ids.reshape(tokens, top_k), numerics.round_at("router.weights", weights)


def check(
    x: Any, ids: Any, weights: Any, all_experts: list[MLPWeights], numerics: Numerics
) -> None:
    found = numba_engine.experts(x, ids, weights, all_experts, numerics)
    assert found.dtype == numerics.dtype
    assert np.array_equal(found, one_by_one(x, ids, weights, all_experts, numerics))
    expected = plain(x, ids, weights, all_experts, numerics)
    hidden, width = x.shape[1], all_experts[0].down_proj.shape[1]
    size = 1 + float(np.abs(weights).sum(axis=1).max())
    error = mlp_error(hidden, width, numerics) * size
    error += tolerances.roundings(2 * ids.shape[1] + 2, numerics.dtype) * size
    if numerics.rounds:
        error += tolerances.roundings(4, "bfloat16") * size
    tolerances.assert_within(found, expected, error, unit=tolerances.UNIT)


@NUMERICS
@pytest.mark.parametrize("stored", FORMATS)
@settings(max_examples=settings().max_examples // 6)  # shared by the cases
@given(
    tokens=st.one_of(st.integers(1, 9), st.sampled_from([33, 65, 130])),
    count=st.integers(1, 9),
    share=st.floats(0, 1),
    favourites=st.integers(1, 9),
    hidden=st.sampled_from([8, 24, 64]),
    width=st.sampled_from([8, 16, 40, 64]),
    seed=st.integers(0, 99),
)
def test_whole_vectors(
    numerics: Numerics, stored: str, tokens: int, count: int, share: float, favourites: int,
    hidden: int, width: int, seed: int,
) -> None:  # fmt: skip
    top_k = 1 + int(share * (count - 1))
    all_experts = [expert(stored, hidden, width, e, group=8) for e in range(count)]
    ids, weights = drawn_routing(tokens, count, top_k, min(favourites, count), numerics, seed)
    x = activations(numerics, tokens, hidden, seed=seed)
    check(x, ids, weights, all_experts, numerics)


@NUMERICS
@pytest.mark.parametrize("stored", ["bf16", "int4"])
@settings(max_examples=settings().max_examples // 6)
@given(
    tokens=st.integers(1, 7),
    hidden=st.sampled_from([4, 12, 20, 36]),
    width=st.sampled_from([4, 12, 36, 44]),
)
def test_widths_that_do_not_fill_a_vector(
    numerics: Numerics, stored: str, tokens: int, hidden: int, width: int
) -> None:
    all_experts = [expert(stored, hidden, width, e, group=4) for e in range(4)]
    ids, weights = drawn_routing(tokens, 4, 2, 4, numerics)
    check(activations(numerics, tokens, hidden), ids, weights, all_experts, numerics)


@pytest.mark.parametrize("name", DEQUANTISED)
@pytest.mark.parametrize("stored", ["int4", "int8", "f32"])
@pytest.mark.parametrize("shape", [(128, 64), (192, 64), (64, 128)])
def test_every_dequantisation(stored: str, name: str, shape: tuple[int, int]) -> None:
    numerics = DEQUANTISED[name]
    all_experts = [expert(stored, *shape, e, group=32) for e in range(3)]
    ids, weights = drawn_routing(5, 3, 2, 3, numerics)
    check(activations(numerics, 5, shape[0]), ids, weights, all_experts, numerics)


@NUMERICS
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 129, 200])
def test_one_expert_hit_by_all(numerics: Numerics, tokens: int) -> None:
    all_experts = [expert("int4", 64, 64, e, group=16) for e in range(3)]
    ids = np.full((tokens, 1), 2)
    weights = np.ones((tokens, 1), numerics.dtype)
    check(activations(numerics, tokens, 64), ids, weights, all_experts, numerics)


def test_every_expert_hit_by_every_token() -> None:
    all_experts = [expert("bf16", 16, 8, e) for e in range(8)]
    ids = np.tile(np.arange(8)[::-1], (33, 1))
    weights = generator(0).random((33, 8)).astype(np.float32)
    check(activations(FLOAT32, 33, 16), ids, weights, all_experts, FLOAT32)


def test_an_expert_that_nobody_chose_may_hold_anything() -> None:
    all_experts = [expert("bf16", 16, 8, e) for e in range(4)]
    ids, weights = np.array([[0, 3], [3, 0]]), np.ones((2, 2), np.float32)
    x = activations(FLOAT32, 2, 16)
    whole = numba_engine.experts(x, ids, weights, all_experts, FLOAT32)
    other = [all_experts[0], expert("int8", 24, 40), expert("f16", 8, 8), all_experts[3]]
    assert np.array_equal(numba_engine.experts(x, ids, weights, other, FLOAT32), whole)


@pytest.mark.parametrize("threads", range(1, 5))
def test_pieces_are_dealt_to_any_number_of_workers(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """More workers than there are pieces, and fewer."""
    all_experts = [expert("bf16", 16, 40, e) for e in range(5)]
    ids, weights = drawn_routing(21, 5, 2, 2, FLOAT32)
    x = activations(FLOAT32, 21, 16)
    whole = numba_engine.experts(x, ids, weights, all_experts, FLOAT32)
    monkeypatch.setattr(numba, "get_num_threads", lambda: 7**threads)
    found = numba_engine.experts(x, ids, weights, all_experts, FLOAT32)
    assert np.array_equal(found, whole)


def test_blocks_of_tokens_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    all_experts = [expert("bf16", 16, 8, e) for e in range(5)]
    ids, weights = drawn_routing(21, 5, 3, 5, FLOAT64)
    x = activations(FLOAT64, 21, 16)
    whole = numba_engine.experts(x, ids, weights, all_experts, FLOAT64)
    for size in (1, 2000):
        monkeypatch.setattr(op, "MAX_SLOT_BYTES", size)
        assert np.array_equal(numba_engine.experts(x, ids, weights, all_experts, FLOAT64), whole)


def mixed(case: str) -> list[MLPWeights]:
    one, two = expert("bf16", 64, 64, 0), expert("bf16", 64, 64, 1)
    if case == "of one expert":
        return [MLPWeights(one.gate_proj, weight("f32", 64, 64), one.down_proj), two]
    first, second = case.split(" and ")
    return [expert(first, 64, 64, 0, group=32), expert(second, 64, 64, 1, group=32)]


@pytest.mark.parametrize("case", ["bf16 and f32", "f32 and bf16", "int4 and int8", "of one expert"])
def test_formats_mixed_in_one_layer_are_right_or_refused(case: str) -> None:
    """Never read as if they were alike."""
    all_experts = mixed(case)
    ids, weights = np.array([[0, 1], [1, 0], [0, 1]]), np.ones((3, 2), np.float32)
    x = activations(FLOAT32, 3, 64)
    try:
        found = numba_engine.experts(x, ids, weights, all_experts, FLOAT32)
    except CheckpointError:
        return
    assert np.array_equal(found, one_by_one(x, ids, weights, all_experts, FLOAT32))
