"""Caches of prefixes: the longest is found, bits are the same, room is kept within."""

from __future__ import annotations

import numpy as np
import pytest

from laguna_ref.load import load
from laguna_ref.model import Laguna
from laguna_ref.server.prefix_cache import PrefixCache, branches


@pytest.fixture(scope="module")
def model() -> Laguna:
    return load(threads=1)


def prompt(length: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(70, 3000, length)]


@pytest.mark.parametrize(("kept", "asked", "found"), [(64, 65, 64), (100, 100, 99), (90, 200, 90)])
def test_a_prefix_found_gives_the_bits_of_computing_it(
    model: Laguna, kept: int, asked: int, found: int
) -> None:
    tokens = prompt(asked)
    prefixes = PrefixCache(10**8)
    cache = model.new_cache()
    model(tokens[:kept], cache=cache, last_only=True)
    prefixes.keep(tokens[:kept], cache)
    shared = prefixes.find(tokens)
    assert shared is not None
    assert shared.length == found
    logits = model(tokens[found:], cache=shared, last_only=True)
    assert np.array_equal(logits, model(tokens, last_only=True))
    again = prefixes.find(tokens)
    assert again is not None
    assert again.length == found  # what was found is a copy


def test_other_tokens_find_nothing(model: Laguna) -> None:
    prefixes = PrefixCache(10**8)
    cache = model.new_cache()
    model(prompt(64), cache=cache, last_only=True)
    prefixes.keep(prompt(64), cache)
    assert prefixes.find(prompt(70, seed=1)) is None
    assert prefixes.find(prompt(64)[:63]) is None


def test_the_least_recently_used_goes_first_and_room_is_kept_within(model: Laguna) -> None:
    cache = model.new_cache()
    model(prompt(64), cache=cache, last_only=True)
    size = cache.nbytes + 4 * 64
    prefixes = PrefixCache(3 * size)
    for seed in range(3):
        prefixes.keep(prompt(64, seed), cache)
    assert prefixes.find([*prompt(64, seed=0), 70]) is not None
    prefixes.keep(prompt(64, 3), cache)
    assert len(prefixes) == 3
    assert prefixes.nbytes == 3 * size
    assert prefixes.find([*prompt(64, 1), 70]) is None
    assert prefixes.find([*prompt(64, 0), 70]) is not None
    assert len(PrefixCache(size)) == 0


def test_nothing_is_kept_without_room_or_of_a_short_prompt(model: Laguna) -> None:
    cache = model.new_cache()
    model(prompt(64), cache=cache, last_only=True)
    for prefixes, tokens in ((PrefixCache(0), prompt(64)), (PrefixCache(10**8), prompt(63))):
        prefixes.keep(tokens, cache)
        assert (len(prefixes), prefixes.nbytes) == (0, 0)


def test_branches() -> None:
    assert branches(10, ()) == [10]
    assert branches(300, (20, 200, 300, 400)) == [64, 128, 200, 256, 300]
    # Of many messages the first and the last ones: each costs a step and a copy.
    assert branches(300, range(70, 300, 10)) == [64, 70, 128, 256, 270, 280, 290, 300]
