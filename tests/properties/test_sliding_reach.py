"""Law: through L sliding layers of window W a token reaches L * (W - 1) tokens on, no further.

Catches: a window of W - 1 or W + 1 keys, a window on full layers, a ring read one slot off.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tolerances
from tests.small import small, tokens_for, uniform_config

FIRST = 2
"""The token that is changed."""


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from(["dense", "sparse"]), st.booleans())
def test_a_token_reaches_exactly_so_far(layers: int, window: int, mlp: str, cached: bool) -> None:
    config = uniform_config(layers, "sliding_attention", mlp, sliding_window=window)
    model = small(config).float64
    reach = layers * (window - 1)
    tokens = tokens_for(config, FIRST + reach + 3)
    changed = tokens.copy()
    changed[FIRST] = (tokens[FIRST] + 1) % config["vocab_size"]
    logits = []
    for prompt in (tokens, changed):
        cache = model.new_cache()
        if cached:  # one by one, through the ring
            steps = [model(prompt[i : i + 1], cache=cache) for i in range(len(prompt))]
            logits.append(np.concatenate(steps))
        else:
            logits.append(model(prompt))
    error = tolerances.model_error(model.config, len(tokens), np.float64)
    scale = np.abs(logits[0]).max()
    moved = np.flatnonzero(np.abs(logits[0] - logits[1]).max(axis=1) > error * scale)
    assert (moved[0], moved[-1]) == (FIRST, FIRST + reach)


@pytest.mark.parametrize("full", [0, 1])
def test_one_full_layer_reaches_everywhere(full: int) -> None:
    kinds = ["sliding_attention"] * 2
    kinds[full] = "full_attention"
    config = uniform_config(2, mlp="dense", layer_types=kinds, sliding_window=2)
    tokens = tokens_for(config, 12)
    changed = tokens.copy()
    changed[0] = (tokens[0] + 1) % config["vocab_size"]
    model = small(config).float64
    error = tolerances.model_error(model.config, 12, np.float64)
    before, after = model(tokens)[-1], model(changed)[-1]
    assert np.abs(before - after).max() > error * np.abs(before).max()
