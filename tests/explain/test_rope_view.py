"""RoPE: wavelengths from the formula."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from laguna_ref import checkpoint, explain
from laguna_ref.config import LagunaConfig
from laguna_ref.explain.rope_view import KindOfRope
from tests.tolerances import yarn_float32

DATA = Path(__file__).parents[1] / "data"


def kinds(preset: str) -> dict[str, KindOfRope]:
    config = LagunaConfig.from_dict(checkpoint.preset(preset), source=preset)
    return {one.attention: one for one in explain.rope(config).kinds}


def test_wavelengths_are_those_that_transformers_computes() -> None:
    found = kinds("xs2-int4")
    for attention, name in (("full_attention", "full"), ("sliding_attention", "sliding")):
        inv_freq = np.load(DATA / f"inv_freq_{name}_attention_factor32_orig4096.npy")
        np.testing.assert_allclose(
            found[attention].wavelength,
            2 * math.pi / inv_freq.astype(np.float64),
            rtol=yarn_float32(5, 16),
        )


def test_yarn_from_the_paper() -> None:
    one = kinds("xs2-int4")["full_attention"]
    j = np.arange(32)
    plain = 2 * math.pi * 500000.0 ** (2 * j / 64)
    np.testing.assert_allclose(one.plain, plain)
    np.testing.assert_allclose(one.turns, 4096 / plain)
    ramp = np.clip((j - 5) / (16 - 5), 0, 1)
    np.testing.assert_allclose(one.ramp, ramp)
    np.testing.assert_allclose(one.stretch, 1 / (ramp / 32 + 1 - ramp))
    assert one.stretch[0] == 1
    assert one.stretch[-1] == pytest.approx(32)


def test_the_attention_factor_counts_twice_in_a_score() -> None:
    launch, later = kinds("xs2-int4")["full_attention"], kinds("xs21-int4")["full_attention"]
    assert (launch.score_factor, launch.derived_factor) == (1.0, 0.1 * math.log(32) + 1)
    assert later.score_factor == pytest.approx(1.3465735902799727**2)


def test_plain_rope_is_not_stretched() -> None:
    one = kinds("xs2-int4")["sliding_attention"]
    np.testing.assert_array_equal(one.stretch, 1)
    assert one.derived_factor is None
    assert one.turns_over == 512
    assert len(one.wavelength) == 64
