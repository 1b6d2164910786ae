"""Where heads look: against a loop over queries and keys."""

from __future__ import annotations

import numpy as np
import pytest

import laguna_ref
from laguna_ref import explain
from laguna_ref.errors import InputError
from laguna_ref.explain import probabilities
from laguna_ref.explain.running import watching_attention
from laguna_ref.generate import PREFILL_CHUNK
from tests.small import Array, quantised, small, small_config, tokens_for
from tests.tolerances import assert_within, model_error

TOKENS = tokens_for(small_config(), 11, seed=5)


@pytest.fixture(scope="module")
def model() -> laguna_ref.Laguna:
    return small(quantised(small_config())).float64


def by_loop(model: laguna_ref.Laguna, layer: int) -> Array:
    """Probabilities [H, T, T] from the traced queries and keys."""
    recorder = laguna_ref.Recorder()
    model(TOKENS, trace=recorder)
    spec = model.config.layers[layer]
    q = recorder[f"model.layers.{layer}.self_attn.q_rope"]
    k = recorder[f"model.layers.{layer}.self_attn.k_cached"]
    out = np.zeros((spec.num_heads, len(TOKENS), len(TOKENS)))
    for head in range(spec.num_heads):
        for t in range(len(TOKENS)):
            low = 0 if spec.window is None else max(0, t - spec.window + 1)
            keys = k[low : t + 1, head // (spec.num_heads // spec.num_kv_heads)]
            e = np.exp(keys @ q[t, head] / np.sqrt(spec.head_dim))
            out[head, t, low : t + 1] = e / e.sum()
    return out


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_sums_are_those_of_the_whole_matrix(model: laguna_ref.Laguna, layer: int) -> None:
    p = by_loop(model, layer)
    found = explain.attention(model, TOKENS, maps=[layer], last=11).layers[layer]
    assert found.map is not None
    assert_within(found.map, p, model_error(model.config, 11, np.float64))
    t = np.arange(11)
    distance = (p * (t[:, None] - t)).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(found.distance, distance)
    logs = np.log(np.where(p > 0, p, 1))
    np.testing.assert_allclose(found.entropy, -(p * logs).sum(axis=2).mean(axis=1))
    np.testing.assert_allclose(found.own, p[:, t, t].mean(axis=1))
    seeing = 11 if found.layer.window is None else found.layer.window
    np.testing.assert_allclose(found.first, p[:, :seeing, 0].mean(axis=1))


def test_the_last_tokens_of_a_map(model: laguna_ref.Laguna) -> None:
    view = explain.attention(model, TOKENS, maps=[1], last=4)
    found = view.layers[1].map
    assert found is not None
    expected = by_loop(model, 1)[:, -4:, -4:]
    assert_within(found, expected, model_error(model.config, 11, np.float64))
    assert view.layers[0].map is None


def test_gates_are_averaged_over_the_prompt(model: laguna_ref.Laguna) -> None:
    recorder = laguna_ref.Recorder("*.gate")
    model(TOKENS, trace=recorder)
    for one in explain.attention(model, TOKENS).layers:
        gate = recorder[f"model.layers.{one.layer.index}.self_attn.gate"]
        np.testing.assert_allclose(one.gate, gate.mean(axis=0))


@pytest.mark.parametrize("most", [1, 40, 10**6])
def test_blocks_of_any_size_give_the_same(
    model: laguna_ref.Laguna, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    expected = explain.attention(model, TOKENS)
    monkeypatch.setattr(probabilities, "MAX_PROBABILITIES", most)
    found = explain.attention(model, TOKENS)
    for a, b in zip(expected.layers, found.layers, strict=True):
        np.testing.assert_allclose(b.entropy, a.entropy)
        np.testing.assert_allclose(b.first, a.first)


@pytest.mark.parametrize("numerics", ["float64", "float32", "bfloat16"])
def test_probabilities_times_values_are_the_engines_output(numerics: str) -> None:
    """Over several chunks, so that rings and offsets are met."""
    model = small(quantised(small_config())).load(numerics=numerics)
    again: list[Array] = []

    def see(layer: object, q: Array, kv: object) -> None:
        spec = model.config.layers[len(again) % 3]
        out = np.zeros_like(q)
        for block in probabilities.blocks(q, kv, spec.window, model.numerics):  # type: ignore[arg-type]
            g = block.heads.start // (spec.num_heads // spec.num_kv_heads)
            first = block.first_key - kv.first  # type: ignore[attr-defined]
            stop = first + block.probabilities.shape[2]
            _, values = kv.decode(first, stop, g, model.numerics)  # type: ignore[attr-defined]
            out[block.rows, block.heads] = block.probabilities @ values
        again.append(model.numerics.round_at("attention.output", out))

    cache = model.new_cache()
    watched = watching_attention(model, see)
    for part in (TOKENS[:3], TOKENS[3:9], TOKENS[9:]):
        recorder = laguna_ref.Recorder("*.attention")
        again.clear()
        watched(part, cache=cache, trace=recorder)
        for layer in range(3):
            traced = recorder[f"model.layers.{layer}.self_attn.attention"]
            np.testing.assert_array_equal(again[layer], traced)


def test_a_prompt_of_several_chunks_counts_every_query_once() -> None:
    config = small_config(max_position_embeddings=2 * PREFILL_CHUNK, num_hidden_layers=1,
                          layer_types=["sliding_attention"], mlp_layer_types=["dense"],
                          num_attention_heads_per_layer=[2])  # fmt: skip
    tokens = tokens_for(config, PREFILL_CHUNK + 9)
    (one,) = explain.attention(small(config).float64, tokens, maps=[0], last=9).layers
    # Rows of the map see four keys, and all but the first three have all four in the map.
    assert one.map is not None
    np.testing.assert_allclose(one.map[:, 3:].sum(axis=2), 1)
    assert (one.distance <= 3).all()


@pytest.mark.parametrize("layer", [3, -1])
def test_a_map_of_no_layer(model: laguna_ref.Laguna, layer: int) -> None:
    with pytest.raises(InputError, match="no such layer; expected 0 to 2"):
        explain.attention(model, TOKENS, maps=[layer])
