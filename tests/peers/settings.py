"""How the comparisons draw their examples."""

import os

from hypothesis import Phase, settings

PEER_CONFIGS = int(os.environ.get("LAGUNA_PEER_CONFIGS", "40"))
"""Configs drawn by the main comparison; the others draw a part. Acceptance takes 200."""


def draw(number: int) -> settings:
    """``number`` examples, not shrunk: weights come from a seed, and no seed is simpler."""
    return settings(max_examples=number, phases=(Phase.explicit, Phase.generate))
