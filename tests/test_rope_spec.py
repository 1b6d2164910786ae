"""YaRN and plain RoPE parameters, against the family's published figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.errors import ConfigError
from laguna_ref.rope_spec import parse_rope
from tests import naive, tolerances
from tests.small import rope_parameters

DATA = Path(__file__).parent / "data"


def yarn(**changes: Any) -> dict[str, Any]:
    """XS.2's full layers as first published; a None drops the key."""
    raw: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 64.0,
        "beta_slow": 1.0,
        "attention_factor": 1.0,
        "partial_rotary_factor": 0.5,
    }
    return {key: value for key, value in (raw | changes).items() if value is not None}


XS2_JUNE = yarn(factor=64.0)
XS21 = yarn(original_max_position_embeddings=8192)
S21 = yarn(factor=128.0, original_max_position_embeddings=8192, beta_fast=32.0)

FAMILY = [
    pytest.param(yarn(), (5.65997, 15.80176), (5, 16), 1.3465735902799727, id="XS.2 launch"),
    pytest.param(XS2_JUNE, (5.65997, 15.80176), (5, 16), 1.4158883083359672, id="XS.2 June"),
    pytest.param(XS21, (7.35027, 17.49206), (7, 18), 1.3465735902799727, id="XS-2.1"),
    pytest.param(S21, (9.04057, 17.49206), (9, 18), 1.4852030263919618, id="S-2.1"),
]


@pytest.mark.parametrize(("raw", "corrections", "ramp", "factor"), FAMILY)
def test_the_familys_ramps_and_derived_factors(
    raw: dict[str, Any], corrections: Any, ramp: Any, factor: float
) -> None:
    found = tuple(round(c, 5) for c in naive.yarn_corrections(raw, 64))
    assert found == corrections, "the naive twin itself"
    assert parse_rope(raw, 128, "", "").yarn_ramp() == ramp
    derived = parse_rope({**raw, "attention_factor": None}, 128, "", "")
    assert math.isclose(
        derived.attention_factor, factor, rel_tol=tolerances.roundings(3, "float64")
    )
    assert derived.attention_factor_from == "0.1 ln(factor) + 1"


def test_an_explicit_attention_factor_of_one_is_honoured() -> None:
    spec = parse_rope(yarn(), 128, "", "")
    assert (spec.attention_factor, spec.attention_factor_from) == (1.0, "config")


@pytest.mark.parametrize("truncate", [False, True])
def test_truncate_decides_whether_the_ramps_ends_are_whole(truncate: bool) -> None:
    ramp = parse_rope(yarn(truncate=truncate), 128, "", "").yarn_ramp()
    whole = all(end == int(end) for end in ramp)
    assert whole == truncate, ramp


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("full", yarn()),
        ("sliding", {"rope_type": "default", "rope_theta": 10000.0}),
    ],
)
def test_inverse_frequencies_are_transformers_own(kind: str, raw: dict[str, Any]) -> None:
    """Against arrays that Transformers 5.23 computed in float32 for XS.2's launch config."""
    theirs = np.load(DATA / f"inv_freq_{kind}_attention_factor32_orig4096.npy")
    ours = parse_rope(raw, 128, "", "").inv_freq
    assert ours.shape == theirs.shape
    error = np.abs(theirs - ours) / ours
    allowed = tolerances.yarn_float32(5, 16)
    assert error.max() <= allowed, f"pair {error.argmax()}: {error.max():.2e} > {allowed:.2e}"


head_dims = st.sampled_from([4, 8, 64, 128])


@given(head_dims.flatmap(lambda head_dim: st.tuples(st.just(head_dim), rope_parameters(head_dim))))
def test_inverse_frequencies_are_the_naive_ones(case: tuple[int, dict[str, Any]]) -> None:
    head_dim, raw = case
    ours = parse_rope(raw, head_dim, "", "")
    theirs = np.array(naive.inverse_frequencies(raw, head_dim))
    # Power, quotient, product with the ramp's side, ramp (2), complement, product, sum.
    error = np.abs(ours.inv_freq - theirs) / theirs
    assert error.max() <= 2 * tolerances.roundings(8 * head_dim, "float64"), raw
    assert ours.rotary_dim == 2 * len(theirs)
    assert math.isclose(
        ours.attention_factor,
        naive.attention_factor(raw),
        rel_tol=tolerances.roundings(3, "float64"),
    )


def test_plain_rope_has_no_attention_factor() -> None:
    raw = {"rope_type": "default", "rope_theta": 10.0, "attention_factor": 1.5}
    assert parse_rope(raw, 8, "", "").attention_factor == 1.0


def test_mscale_quotient_replaces_the_derived_factor() -> None:
    raw = yarn(attention_factor=None, mscale=2.0, mscale_all_dim=1.0)
    expected = (0.2 * math.log(32) + 1) / (0.1 * math.log(32) + 1)
    spec = parse_rope(raw, 128, "", "")
    assert math.isclose(spec.attention_factor, expected, rel_tol=tolerances.roundings(8, "float64"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rope_type": "linear"}, "rope_type"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        ({"factor": float("nan")}, "factor"),
        ({"factor": "32"}, "factor"),
        ({"original_max_position_embeddings": -1}, "original_max_position_embeddings"),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"attention_factor": 0.0}, "attention_factor"),
        ({"truncate": 1}, "truncate"),
        ({"long_factor": [1.0]}, "long_factor"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"a file: rope\.{key}"):
        parse_rope(yarn(**changes), 128, "a file", "rope")


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings", "rope_theta"])
def test_yarn_has_no_defaults_for_what_changes_the_maths(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_rope(yarn(**{key: None}), 128, "", "rope")


@pytest.mark.parametrize("value", [float("inf"), 10**400], ids=["inf", "huge"])
@pytest.mark.parametrize(
    "key",
    [
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "attention_factor",
        "beta_fast",
    ],
)
def test_numbers_beyond_floating_point_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_rope(yarn(**{key: value}), 128, "", "rope")
