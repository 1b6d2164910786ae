"""Routing: counts and margins against the traced choices."""

from __future__ import annotations

import numpy as np
import pytest

import laguna_ref
from laguna_ref import explain
from laguna_ref.explain import running
from laguna_ref.explain.routing_view import LayerRouting
from tests.small import Array, small, small_config, tokens_for
from tests.tolerances import assert_within, model_error

TOKENS = tokens_for(small_config(), 30, seed=7)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize("chunk", [512, 7])
def test_load_weights_and_margins(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(running.in_chunks, "__kwdefaults__",
                        running.in_chunks.__kwdefaults__ | {"chunk": chunk})  # fmt: skip
    one = small()
    model = one.float64
    recorder = laguna_ref.Recorder()
    model(TOKENS, trace=recorder)
    view = explain.routing(model, TOKENS, nearest=3)
    assert [layer.layer for layer in view.layers] == [1, 2]
    error = model_error(model.config, 30, np.float64)
    every = []
    for found in view.layers:
        at = f"model.layers.{found.layer}.mlp"
        ids, weights = recorder[f"{at}.topk_ids"], recorder[f"{at}.topk_weights"]
        assert found.load.tolist() == [int((ids == e).sum()) for e in range(6)]
        expected = [weights[ids == e].sum() for e in range(6)]
        assert_within(found.weight, expected, error)
        bias = one.values[f"{at}.experts.e_score_correction_bias"]
        ranked = np.sort(sigmoid(recorder[f"{at}.gate"]) + bias)[:, ::-1]
        assert_within(found.margins, ranked[:, 1] - ranked[:, 2], error, unit=1.0)
        every += [(m, found.layer, t) for t, m in enumerate(found.margins)]
    nearest = [(c.margin, c.layer, c.position) for c in view.nearest]
    assert nearest == sorted(every)[:3]


def test_a_near_tie_is_one_that_two_roundings_can_turn() -> None:
    """The router's rows of two experts are made almost equal."""
    at = "model.layers.1.mlp"
    one = small()
    gate = one.values[f"{at}.gate.weight"].copy()
    gate[:] = 0
    gate[0, 0], gate[1, 0], gate[2, 0] = 1.0, 0.5, 0.5 * (1 + 2.0**-8)
    bias = np.zeros(6)
    model = one.with_tensors(
        {f"{at}.gate.weight": gate, f"{at}.experts.e_score_correction_bias": bias}
    ).float64
    recorder = laguna_ref.Recorder("*.mlp.gate")
    model(TOKENS, trace=recorder)
    up = recorder[f"{at}.gate"][:, 0] > 0
    first = explain.routing(model, TOKENS).layers[0]
    # Upwards the choice is experts 0 and 2, and 1 is next; it could take the place of 2.
    assert first.near_ties[up].all()
    assert up.any()
    # Downwards those with a logit of zero are chosen: rounding zeros changes nothing, but the
    # lower index goes first, so they are ties all the same.
    assert (first.margins[~up] == 0).all()


def test_all_experts_chosen_leave_no_margin() -> None:
    model = small(small_config(num_experts_per_tok=6)).float64
    view = explain.routing(model, TOKENS)
    assert all(np.isinf(layer.margins).all() for layer in view.layers)
    assert not any(layer.near_ties.any() for layer in view.layers)
    assert all(choice.runner_up is None for choice in view.nearest)


def test_effective_experts() -> None:
    def layer(load: list[int]) -> LayerRouting:
        nothing = np.zeros(0)
        return LayerRouting(0, np.array(load), nothing, nothing, nothing)

    assert layer([5, 5, 5, 5]).effective_experts == pytest.approx(4)
    assert layer([9, 0, 0, 0]).effective_experts == pytest.approx(1)


def test_a_model_without_experts_has_no_layers() -> None:
    config = small_config(mlp_layer_types=["dense"] * 3)
    assert explain.routing(small(config).float64, TOKENS).layers == ()
