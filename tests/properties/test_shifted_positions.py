"""Law: shifting all positions leaves the logits as they are, for scores depend on distances.

Catches: positions taken from the wrong end, RoPE on values, angles in the wrong precision, a
query and a key turned by different frequencies.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests import tolerances
from tests.small import Small, models, tokens_for

TOKENS = 7


@given(models(), st.integers(1, 505))
def test_a_common_shift_of_all_positions(model: Small, shift: int) -> None:
    loaded = model.load(numerics="float64", kv_cache="float")  # FP8 rounds turned keys
    tokens = tokens_for(model.config, TOKENS)
    shifted = loaded(tokens, positions=np.arange(TOKENS) + shift)
    error = tolerances.angle_shift(loaded.config, TOKENS, 512)
    tolerances.assert_within(shifted, loaded(tokens), error, f"shift {shift}")


@given(models(), st.integers(2, 60))
def test_but_their_distances_matter(model: Small, stretch: int) -> None:
    """Unless there is but one position, or one key to see."""
    config = model.config
    sees_one = config["sliding_window"] == 1
    if sees_one and "full_attention" not in config["layer_types"]:
        return
    loaded = model.load(numerics="float64", kv_cache="float")
    tokens = tokens_for(config, TOKENS)
    tokens[:2] = [0, 1]  # two different keys
    stretched = loaded(tokens, positions=np.arange(TOKENS) * stretch)
    error = tolerances.angle_shift(loaded.config, TOKENS, 512)
    whole = loaded(tokens)
    assert np.abs(stretched - whole).max() > error * np.abs(whole).max()
