"""The three numerics: what rounds, how it rounds, and that every rounding point is reached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from laguna_ref.errors import InputError
from laguna_ref.numerics import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    NUMERICS,
    ROUNDING_POINTS,
    Array,
    Numerics,
    numerics_by_name,
    round_to_bf16,
)
from tests.small import BF16, quantised, small, small_config, tokens_for


def test_every_tie_goes_to_the_even_bfloat16() -> None:
    """All float32 halfway between two bfloat16, and the numbers next to them."""
    high = np.arange(0x7F7F, dtype=np.uint32) << 16
    for low in (0x0000, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        bits = high | np.uint32(low)
        up = (low > 0x8000) | ((low == 0x8000) & ((high >> 16) & 1).astype(bool))
        expected = (high + (np.asarray(up, np.uint32) << 16)).view(np.float32)
        found = round_to_bf16(bits.view(np.float32))
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), hex(low)
        assert np.array_equal(round_to_bf16(-bits.view(np.float32)), -expected)


def test_rounding_twice_is_rounding_once() -> None:
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    once = round_to_bf16(x)
    assert np.array_equal(round_to_bf16(once), once)
    assert np.array_equal(once, x.astype(BF16))


@pytest.mark.parametrize(
    ("name", "dtype", "cache", "dequant"),
    [
        ("float64", np.float64, np.dtype(np.float64), "exact"),
        ("float32", np.float32, np.dtype(np.float32), "exact"),
        ("bfloat16", np.float32, BF16, "bf16"),
    ],
)
def test_the_three_numerics(name: str, dtype: Any, cache: Any, dequant: str) -> None:
    numerics = numerics_by_name(name)
    found = (numerics.name, numerics.dtype, numerics.cache_dtype, numerics.dequant)
    assert found == (name, np.dtype(dtype), cache, dequant)
    assert bool(numerics.rounds) == (name == "bfloat16")


@pytest.mark.parametrize("name", NUMERICS)
@pytest.mark.parametrize("dequant", ["exact", "bf16"])
def test_dequantisation_is_a_choice_of_its_own(name: str, dequant: Any) -> None:
    assert numerics_by_name(name, dequant) == replace(NUMERICS[name], dequant=dequant)


@pytest.mark.parametrize(("name", "dequant"), [("float16", None), ("float32", "int8"), ("", "")])
def test_unknown_names_are_refused(name: str, dequant: str | None) -> None:
    with pytest.raises(InputError, match="expected"):
        numerics_by_name(name, dequant)


def test_an_unknown_rounding_point_is_a_mistake_of_ours() -> None:
    for numerics in (FLOAT64, FLOAT32, BFLOAT16):
        with pytest.raises(KeyError):
            numerics.round_at("nowhere", np.zeros(1))


def test_wider_numerics_hand_values_through_unchanged() -> None:
    x = np.array([1 / 3], dtype=np.float32)
    for point in ROUNDING_POINTS:
        assert FLOAT32.round_at(point, x) is x
        assert BFLOAT16.round_at(point, x)[0] == x.astype(BF16)[0]


class _Watching(Numerics):
    """bfloat16 numerics that note which points were passed."""

    seen: set[str] = set()  # noqa: RUF012 -- one per test run is enough

    def round_at(self, point: str, x: Array) -> Array:
        self.seen.add(point)
        return super().round_at(point, x)


def test_a_forward_pass_reaches_every_rounding_point() -> None:
    """With an FP8 cache, a packed expert and one float32 weight, none is left out."""
    config = quantised(small_config())
    model = small(config).load(numerics="bfloat16")
    fields = ("name", "dtype", "cache_dtype", "dequant", "rounds")
    watching = _Watching(*(getattr(model.numerics, field) for field in fields))
    model.numerics = watching
    tokens = tokens_for(config, 6)
    whole = model(tokens)
    assert watching.seen == set(ROUNDING_POINTS)
    assert np.isfinite(whole).all()


def test_bfloat16_values_are_bfloat16() -> None:
    config = small_config()
    logits = small(config).load(numerics="bfloat16")(tokens_for(config, 6))
    assert logits.dtype == np.float32
    assert np.array_equal(logits, round_to_bf16(logits))
