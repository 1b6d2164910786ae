"""Law: a power of two put into one weight and taken out of another changes no bit.

Multiplying by a power of two commutes with every rounding, so the laws hold bit for bit in all
numerics. Catches: a norm or scale applied twice or not at all, a wrong order of norm, RoPE and
cache, k_scale and v_scale swapped or forgotten.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small import KV_CACHE_SCHEME, Small, configs, small, tokens_for

TOKENS = 6
FP8 = {"quantization_config": {"config_groups": {}, "kv_cache_scheme": dict(KV_CACHE_SCHEME)}}

LAWS: dict[str, tuple[dict[str, int], int]] = {
    # pattern of a tensor's name -> exponent of its factor; exponent of the logits'
    "q_norm against k_norm": ({r"q_norm\.weight$": 3, r"k_norm\.weight$": -3}, 0),
    "k_norm and k_scale against q_norm": (
        {r"k_norm\.weight$": 2, r"k_scale$": 2, r"q_norm\.weight$": -2},
        0,
    ),
    "v_proj and v_scale against o_proj": (
        {r"v_proj\.weight$": -2, r"v_scale$": -2, r"o_proj\.weight$": 2},
        0,
    ),
    "up_proj against down_proj": ({r"up_proj\.weight$": 4, r"down_proj\.weight$": -4}, 0),
    "input norm against q, k, v and g": (
        {r"input_layernorm\.weight$": 2, r"[qkvg]_proj\.weight$": -2},
        0,
    ),
    "final norm": ({r"model\.norm\.weight$": 5}, 5),
    "head": ({r"lm_head\.weight$": -3}, -3),
}


def scaled(model: Small, factors: dict[str, int]) -> Small:
    def change(name: str, value: Any) -> Any:
        exponents = [e for pattern, e in factors.items() if re.search(pattern, name)]
        return np.ldexp(value, sum(exponents)) if exponents else None

    return model.mapped(change)


def eps_free(config: dict[str, Any]) -> dict[str, Any]:
    """q_proj and k_proj feed norms, whose eps does not scale along."""
    return config | FP8 | {"rms_norm_eps": 0.0, "tie_word_embeddings": False}


UNSCALED_KEYS = "q_norm against k_norm"
"""Moves keys against the FP8 cache's scale, so it holds for a float cache only."""


@pytest.mark.parametrize(
    ("law", "kv_cache"),
    [(law, "float") for law in LAWS]
    + [(law, "checkpoint") for law in LAWS if law != UNSCALED_KEYS],
)
@settings(max_examples=settings().max_examples // 5)  # shared by the cases
@given(config=configs(quantise=False), numerics=st.sampled_from(["float64", "float32", "bfloat16"]))
def test_no_bit_changes(law: str, kv_cache: str, config: dict[str, Any], numerics: str) -> None:
    factors, exponent = LAWS[law]
    model = small(eps_free(config))
    tokens = tokens_for(config, TOKENS)
    before, after = (
        drawn.load(numerics=numerics, kv_cache=kv_cache)(tokens)
        for drawn in (model, scaled(model, factors))
    )
    assert np.array_equal(after, np.ldexp(before, exponent)), np.abs(after - before).max()
