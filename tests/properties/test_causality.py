"""Law: a token's logits depend on it and on those before it, on nothing after it.

Catches: a missing or shifted mask, keys of the whole chunk, state kept between calls.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests import tolerances
from tests.small import Small, models, tokens_for

TOKENS = 9


@given(models(), st.integers(1, TOKENS - 1), st.integers(0, 99))
def test_later_tokens_do_not_matter(model: Small, cut: int, seed: int) -> None:
    tokens, others = (tokens_for(model.config, TOKENS, s) for s in (seed, seed + 100))
    changed = np.concatenate([tokens[:cut], others[cut:]])
    error = tolerances.model_error(model.float64.config, TOKENS, np.float64)
    whole = model.float64(tokens)
    tolerances.assert_within(model.float64(changed)[:cut], whole[:cut], error, "other tokens after")
    tolerances.assert_within(model.float64(tokens[:cut]), whole[:cut], error, "no tokens after")


@given(models())
def test_a_call_leaves_nothing_behind(model: Small) -> None:
    tokens, others = (tokens_for(model.config, TOKENS, seed) for seed in (1, 2))
    first = model.float64(tokens)
    model.float64(others)
    assert np.array_equal(model.float64(tokens), first)
