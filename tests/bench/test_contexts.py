"""Caches filled without running the model."""

from __future__ import annotations

import numpy as np
import pytest

from laguna_ref.bench.contexts import Filler
from tests.small import quantised, small, small_config

CONFIG = quantised(small_config(max_position_embeddings=10000))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 4095, 4096, 9000])
@pytest.mark.parametrize("kv_cache", ["fp8", "float"])
def test_a_filled_cache_is_one_that_the_model_continues(length: int, kv_cache: str) -> None:
    model = small(CONFIG).load(kv_cache=kv_cache)
    cache = Filler(model).filled(length)
    assert cache.length == length
    first = model([7], cache=cache)
    assert np.isfinite(first).all()
    for _ in range(3):  # as the bench does between two steps
        cache.truncate(length)
        assert np.array_equal(model([7], cache=cache), first)


def test_every_cached_key_is_one_that_the_model_computed() -> None:
    model = small().load(kv_cache="float")
    filler = Filler(model)
    slice_ = filler.filled(500).layers[0].append(*(part[:1] for part in filler._sample[0]))
    for cached, computed in zip((slice_.keys, slice_.values), filler._sample[0], strict=True):
        known = {row.tobytes() for row in computed}
        found = {row.tobytes() for row in cached}
        assert found <= known
        assert len(found) > len(known) / 2


def test_the_seed_decides() -> None:
    model = small().load(kv_cache="float")

    def logits(seed: int) -> bytes:
        return model([7], cache=Filler(model, seed).filled(50)).tobytes()

    assert logits(1) == logits(1)
    assert logits(1) != logits(2)
