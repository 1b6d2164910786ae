"""One token's way: each number against another way to get it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import laguna_ref
from laguna_ref import explain
from laguna_ref.errors import InputError
from laguna_ref.explain.token_view import norm
from tests.small import Small, quantised, small, small_config, tokens_for
from tests.tolerances import assert_within, model_error, roundings

TOKENS = tokens_for(small_config(), 14, seed=3)


@pytest.fixture(scope="module")
def one() -> Small:
    return small(quantised(small_config()))


def traced(model: laguna_ref.Laguna, count: int = 14) -> laguna_ref.Recorder:
    recorder = laguna_ref.Recorder()
    model(TOKENS[:count], trace=recorder)
    return recorder


@pytest.mark.parametrize("position", [0, 5, -1])
def test_contributions_add_up_to_the_residual_stream(one: Small, position: int) -> None:
    """Exactly in float64, if they are added in the model's own order."""
    view = explain.token(one.float64, TOKENS, position)
    stream = view.embedding
    for index, step in enumerate(view.layers):
        assert step.before == norm(stream)
        stream = stream + step.contributions["attention"]
        rest = [vector for name, vector in step.contributions.items() if name != "attention"]
        # combine() adds routed and shared experts before the residual.
        stream = stream + (rest[0] if len(rest) == 1 else rest[1] + rest[0])
        assert step.after == norm(stream), index
        added = step.before + sum(step.norms.values())
        assert step.rounding <= roundings(3, np.float64) * added


def test_contributions_are_those_of_a_whole_run(one: Small) -> None:
    model = one.float64
    points = traced(model)
    view = explain.token(model, TOKENS, 9)
    for step in view.layers:
        at = f"model.layers.{step.layer.index}"
        found = np.concatenate(
            [step.contributions["attention"],
             sum(v for name, v in step.contributions.items() if name != "attention")]
        )  # fmt: skip
        expected = np.concatenate([points[f"{at}.self_attn"][9], points[f"{at}.mlp"][9]])
        assert_within(found, expected, model_error(model.config, 14, np.float64))
        assert step.norms["attention"] == pytest.approx(norm(points[f"{at}.self_attn"][9]))


def test_bfloat16_says_what_rounding_took() -> None:
    view = explain.token(small().load(numerics="bfloat16"), TOKENS)
    for step in view.layers:
        # The residual twice, and the sum of routed and shared experts.
        added = step.before + sum(step.norms.values())
        assert 0 < step.rounding <= roundings(3, ml_dtypes.bfloat16) * added


def test_probabilities_give_the_traced_attention(one: Small) -> None:
    model = one.float64
    points = traced(model)
    view = explain.token(model, TOKENS)
    for step in view.layers:
        at = f"model.layers.{step.layer.index}.self_attn"
        assert step.looked_at.sum() == pytest.approx(1)
        assert step.looked_at.shape == (14,)
        if step.layer.window is not None:
            assert not step.looked_at[: 14 - step.layer.window].any()
        q, k = points[f"{at}.q_rope"][-1], points[f"{at}.k_cached"]
        group = step.layer.num_heads // step.layer.num_kv_heads
        for head in range(step.layer.num_heads):
            scores = k[:, head // group] @ q[head] * step.layer.head_dim**-0.5
            if step.layer.window is not None:
                scores[: 14 - step.layer.window] = -np.inf
            p = np.exp(scores - scores.max())
            p /= p.sum()
            assert step.head_probability[head] == pytest.approx(p.max())
            assert step.head_looked_at[head] == p.argmax()


def test_gates_and_experts_are_those_traced(one: Small) -> None:
    model = one.float64
    points = traced(model)
    for step in explain.token(model, TOKENS).layers:
        at = f"model.layers.{step.layer.index}"
        np.testing.assert_allclose(step.gate, points[f"{at}.self_attn.gate"][-1])
        if step.choice is None:
            assert step.layer.mlp == "dense"
            continue
        assert list(step.choice.experts) == points[f"{at}.mlp.topk_ids"][-1].tolist()
        weights = points[f"{at}.mlp.topk_weights"][-1]
        np.testing.assert_allclose(step.choice.weights, weights)
        logits = points[f"{at}.mlp.gate"][-1]
        np.testing.assert_allclose(step.choice.logits, logits[list(step.choice.experts)])


def test_a_gate_per_element_is_averaged() -> None:
    model = small(small_config(gating="per-element")).load(numerics="float64")
    points = traced(model)
    for step in explain.token(model, TOKENS).layers:
        wide = points[f"model.layers.{step.layer.index}.self_attn.gate"][-1]
        expected = wide.reshape(step.layer.num_heads, -1).mean(axis=1)
        np.testing.assert_allclose(step.gate, expected)


@pytest.mark.parametrize("numerics", ["float64", "float32"])
def test_the_lens_after_the_last_layer_is_the_models_own_answer(one: Small, numerics: str) -> None:
    model = one.load(numerics=numerics)
    view = explain.token(model, TOKENS, top=3)
    error = model_error(model.config, 14, model.numerics.dtype, last=14)
    assert [g.token for g in view.layers[-1].lens] == [g.token for g in view.guesses]
    for part in ("logit", "logprob"):
        found, expected = ([getattr(g, part) for g in guesses]
                           for guesses in (view.layers[-1].lens, view.guesses))  # fmt: skip
        assert_within(found, expected, error)
    assert [g.token for g in view.guesses] == np.argsort(-view.logits, kind="stable")[:3].tolist()
    assert view.layers[-1].answer_logprob == view.layers[-1].lens[0].logprob
    total = np.log(np.exp(view.logits.astype(np.float64)).sum())
    assert view.guesses[0].logprob == pytest.approx(float(view.logits.max()) - total)


def test_what_comes_after_makes_no_difference(one: Small) -> None:
    model = one.load(engine="numba", numerics="float32")
    whole, cut = explain.token(model, TOKENS, 6), explain.token(model, TOKENS[:7])
    assert whole.position == cut.position == 6
    np.testing.assert_array_equal(whole.logits, cut.logits)
    assert whole.layers[-1].lens == whole.guesses
    np.testing.assert_array_equal(whole.logits, model(TOKENS[:7])[-1])


@pytest.mark.parametrize("position", [14, -15, 1.0, True])
def test_a_position_that_is_not_there(one: Small, position: Any) -> None:
    with pytest.raises(InputError, match="no such position; expected -14 to 13"):
        explain.token(one.float64, TOKENS, position)
