"""The key/value cache: chunkings, the ring, truncation, copies, memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from laguna_ref import KVCache, Laguna, LagunaConfig, Recorder
from laguna_ref.checkpoint import preset
from laguna_ref.errors import CacheError, NonFiniteError
from laguna_ref.kv_cache import KVFormat, LayerCache, cache_bytes
from laguna_ref.numerics import FLOAT64
from tests import tolerances
from tests.small import (
    KV_CACHE_SCHEME,
    Small,
    configs,
    models,
    quantised,
    small,
    small_config,
    tokens_for,
    uniform_config,
)

WINDOW = 4
FP8_CACHE = {"config_groups": {}, "kv_cache_scheme": dict(KV_CACHE_SCHEME)}


def in_chunks(model: Laguna, tokens: Any, cuts: list[int], trace: Recorder | None = None) -> Any:
    """Logits of every token, fed between the cuts."""
    cache = model.new_cache()
    bounds = sorted({0, len(tokens), *cuts})
    parts = [model(tokens[a:b], cache=cache, trace=trace) for a, b in pairwise(bounds)]
    assert cache.length == len(tokens)
    return np.concatenate(parts)


@st.composite
def cuts(draw: st.DrawFn, tokens: int = 16) -> list[int]:
    """Where a prompt is cut; its last tokens come one by one."""
    prompt = draw(st.integers(1, tokens))
    inside = draw(st.lists(st.integers(1, prompt), max_size=4))
    return [*inside, *range(prompt, tokens)]


def routing_margin(trace: Recorder, model: Small) -> float:
    """Smallest distance of a chosen expert's selection score to the next one's, over a run."""
    config = model.config
    margins = [np.inf]
    for layer, kind in enumerate(config["mlp_layer_types"]):
        if kind == "sparse":
            at = f"model.layers.{layer}.mlp"
            logits = trace[f"{at}.gate"].astype(np.float64)
            scores = _scores(logits, config.get("moe_router_score_func", "sigmoid"))
            selection = scores + model.values[f"{at}.experts.e_score_correction_bias"]
            ordered = -np.sort(-selection, axis=1)
            gaps = -np.diff(ordered[:, : config["num_experts_per_tok"] + 1])
            margins.append(float(gaps.min(initial=np.inf)))
    return min(margins)


def _scores(logits: Any, name: str) -> Any:
    if name == "softmax":
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    return 1 / (1 + np.exp(-logits)) if name == "sigmoid" else np.sqrt(np.log1p(np.exp(logits)))


@pytest.mark.parametrize("numerics", ["float64", "float32"])
@given(model=models(), where=cuts(), seed=st.integers(0, 99))
def test_any_chunking_equals_one_prefill_to_rounding(
    numerics: str, model: Small, where: list[int], seed: int
) -> None:
    tokens = tokens_for(model.config, 16, seed)
    # Float32 noise would tip an FP8 rounding now and then: FP8 is for float64 here.
    kv_cache = "checkpoint" if numerics == "float64" else "float"
    loaded = model.load(numerics=numerics, kv_cache=kv_cache)
    trace = Recorder("*")
    whole = loaded(tokens, trace=trace)
    bounds = (loaded.config, 16, numerics)
    assume(routing_margin(trace, model) > tolerances.router_margin(*bounds))
    chunks = in_chunks(loaded, tokens, where)
    tolerances.assert_within(chunks, whole, tolerances.model_error(*bounds), str(where))


@given(model=st.builds(small, configs(), st.integers(0, 99)), where=cuts(tokens=9))
def test_in_bfloat16_only_turned_roundings_tell_chunkings_apart(
    model: Small, where: list[int]
) -> None:
    """Every expert is chosen, so that no turned rounding can turn a choice."""
    config = model.config | {"num_experts_per_tok": model.config["num_experts"]}
    model = Small(config, model.values, model.stored)
    tokens = tokens_for(config, 9)
    loaded = model.load(numerics="bfloat16", kv_cache="float")
    whole, chunks = loaded(tokens), in_chunks(loaded, tokens, where)
    error = tolerances.bfloat16_model_error(loaded.config)
    tolerances.assert_within(chunks, whole, error, str(where))


@pytest.mark.parametrize("chunk", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_chunks_around_the_windows_length(chunk: int) -> None:
    model = small(uniform_config(3, "sliding_attention"))
    tokens = tokens_for(model.config, 25)
    found = in_chunks(model.float64, tokens, list(range(chunk, 25, chunk)))
    error = tolerances.model_error(model.float64.config, 25, np.float64)
    tolerances.assert_within(found, model.float64(tokens), error)


def test_fp8_gives_the_current_tokens_own_key_back_through_the_cache() -> None:
    model = small(small_config(quantization_config=FP8_CACHE))
    trace = Recorder("*self_attn.k_*", "*self_attn.v_*")
    model.float64([3], trace=trace)
    for layer in range(3):
        at = f"model.layers.{layer}.self_attn"
        assert not np.array_equal(trace[f"{at}.k_cached"], trace[f"{at}.k_rope"])
        k_scale = model.values[f"{at}.k_scale"]
        key = trace[f"{at}.k_rope"]
        off = np.abs(trace[f"{at}.k_cached"] - key)
        # Half of the spacing: 2^-4 of a normal value, 2^-10 scales below them.
        assert (off <= np.maximum(2.0**-4 * np.abs(key), 2.0**-10 * k_scale)).all()


# One layer's ring


def ring(window: int | None = WINDOW) -> LayerCache:
    return LayerCache(
        "a layer", (1, 1), window, KVFormat(False, np.float32(1), np.float32(1)), FLOAT64
    )


def numbers(start: int, stop: int) -> Any:
    return np.arange(start, stop, dtype=np.float64)[:, None, None]


def feed(layer: LayerCache, stop: int) -> list[float]:
    """Appends tokens up to ``stop``, whose keys are their numbers; returns what they may see."""
    seen = layer.append(numbers(layer.length, stop), numbers(layer.length, stop))
    layer.commit()
    assert np.array_equal(seen.keys, seen.values)
    assert seen.keys[0, 0, 0] == seen.first
    return [float(k) for k in seen.keys.ravel()]


def test_a_chunk_sees_the_old_ring_and_itself() -> None:
    layer = ring()
    assert feed(layer, 3) == [0, 1, 2]
    assert feed(layer, 4) == [0, 1, 2, 3]
    assert feed(layer, 6) == [1, 2, 3, 4, 5]
    assert feed(layer, 15) == list(range(3, 15))
    assert feed(layer, 16) == [12, 13, 14, 15]


def test_a_full_layer_sees_everything() -> None:
    layer = ring(None)
    for stop in (1, 2, 9, 40):
        assert feed(layer, stop) == list(range(stop))


def test_without_commit_nothing_is_cached() -> None:
    layer = ring()
    feed(layer, 6)
    layer.append(numbers(100, 109), numbers(100, 109))
    assert layer.length == 6
    assert feed(layer, 7) == [3, 4, 5, 6]


def test_a_ring_holds_its_window_and_no_more() -> None:
    layer = ring()
    before = layer.nbytes
    for stop in (3, 50, 51, 500):
        feed(layer, stop)
        assert layer.nbytes == before == 2 * WINDOW * np.dtype(np.float64).itemsize


# Truncation


@pytest.mark.parametrize("length", range(11))
@pytest.mark.parametrize("fed", [3, 4, 5, 10])
def test_truncating_a_ring_works_where_it_still_holds_what_is_needed(fed: int, length: int) -> None:
    config = uniform_config(2, "sliding_attention")
    model = small(config).float64
    tokens = tokens_for(config, 12)
    cache = model.new_cache()
    model(tokens[:fed], cache=cache)
    # The token at ``length`` needs the WINDOW - 1 before it; the last WINDOW fed are held.
    held = max(0, fed - WINDOW)
    legal = length <= fed and (length == 0 or max(0, length - WINDOW + 1) >= held)
    if legal:
        cache.truncate(length)
    else:
        with pytest.raises(CacheError, match="cannot truncate"):
            cache.truncate(length)
        length = fed
    assert cache.length == length
    error = tolerances.model_error(model.config, 12, np.float64)
    after = model(tokens[length:], cache=cache)
    tolerances.assert_within(after, model(tokens)[length:], error, f"{fed} to {length}")


@pytest.mark.parametrize("lengths", [(9, 8), (9, 9, 8), (10, 9, 7)])
def test_truncating_twice_cannot_reach_what_truncating_once_cannot(
    lengths: tuple[int, ...],
) -> None:
    """The ring's slots were overwritten by the longest sequence, not by the present one."""
    model = small(uniform_config(1, "sliding_attention")).float64
    cache = model.new_cache()
    model(tokens_for(model.config.raw, 10), cache=cache)
    for length in lengths[:-1]:
        cache.truncate(length)
    with pytest.raises(CacheError, match="overwritten"):
        cache.truncate(lengths[-1])
    assert cache.length == lengths[-2]


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 9)), min_size=1, max_size=8))
def test_appending_and_truncating_in_any_order(steps: list[tuple[int, int]]) -> None:
    """A ring gives right keys or refuses; it may refuse only what it no longer holds."""
    layer, sequence, written = ring(), [], 0
    for number, (count, back) in enumerate(steps):
        chunk = [100.0 * number + i for i in range(count)]
        array = np.array(chunk)[:, None, None]
        seen = layer.append(array, array)
        layer.commit()
        sequence += chunk
        written = max(written, len(sequence))
        assert seen.keys.ravel().tolist() == sequence[seen.first :]
        assert seen.first <= max(0, len(sequence) - count - WINDOW + 1)
        target = max(0, len(sequence) - back)
        needed = max(0, target - WINDOW + 1)
        try:
            layer.require_truncatable(target)
        except CacheError:
            assert target > 0
            assert needed < written - WINDOW, "refused although still held"
            continue
        _truncate(layer, target)
        del sequence[target:]
        written = written if sequence else 0


def _truncate(layer: LayerCache, length: int) -> None:
    """Through the whole cache, as callers do."""
    cache = object.__new__(KVCache)
    cache.layers = (layer,)
    cache.truncate(length)


def test_one_layer_that_cannot_leaves_all_as_they_were() -> None:
    model = small().float64
    cache = model.new_cache()
    model(tokens_for(model.config.raw, 10), cache=cache)
    with pytest.raises(CacheError, match=r"model\.layers\.1\.self_attn.*keys from token"):
        cache.truncate(5)
    assert [layer.length for layer in cache.layers] == [10, 10, 10]


@pytest.mark.parametrize("length", [-1, 11])
def test_lengths_beyond_the_cache_are_refused(length: int) -> None:
    model = small(uniform_config(1)).float64
    cache = model.new_cache()
    model(tokens_for(model.config.raw, 10), cache=cache)
    with pytest.raises(CacheError, match="0 to 10 tokens"):
        cache.truncate(length)


def test_full_layers_truncate_to_any_length() -> None:
    model = small(uniform_config(2)).float64
    tokens = tokens_for(model.config.raw, 10)
    error = tolerances.model_error(model.config, 10, np.float64)
    for length in range(10):
        cache = model.new_cache()
        model(tokens, cache=cache)
        cache.truncate(length)
        tolerances.assert_within(model(tokens[length:], cache=cache), model(tokens)[length:], error)


# Copies, memory, NaN


@pytest.mark.parametrize("fed", [3, 10])
def test_a_copy_goes_its_own_way(fed: int) -> None:
    model = small().float64
    tokens = tokens_for(model.config.raw, 14)
    cache = model.new_cache()
    model(tokens[:fed], cache=cache)
    copy = cache.copy()
    model(tokens[::-1], cache=copy)
    assert (cache.length, copy.length) == (fed, fed + 14)
    error = tolerances.model_error(model.config, 14, np.float64)
    after = model(tokens[fed:], cache=cache)
    tolerances.assert_within(after, model(tokens)[fed:], error, "the original")


def test_memory_of_xs2_at_full_length() -> None:
    """131,072 tokens in FP8: 2.7 GB for the ten full layers, 31 MB for the thirty sliding."""
    config = LagunaConfig.from_dict(preset("xs2-int4"))
    found = cache_bytes(config, 131072, [True] * 40)
    per_token = 2 * 8 * 128
    assert found["full_attention"] == 10 * 131072 * per_token == 2_684_354_560
    assert found["sliding_attention"] == 30 * 512 * per_token == 31_457_280
    halves = cache_bytes(config, 131072, [False] * 40)
    assert halves == {kind: 2 * size for kind, size in found.items()}


def test_a_nan_key_is_refused_by_name() -> None:
    model = small(quantised(small_config()))
    stored = dict(model.stored)
    name = "model.layers.1.self_attn.k_norm.weight"
    stored[name] = stored[name].copy()
    stored[name][0] = np.nan
    loaded = Small(model.config, model.values, stored).load(numerics="float64")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.self_attn\.k_cached"):
        loaded([1, 2])
