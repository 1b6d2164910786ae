"""Legal variations: the same function, other roundings; the same seed, the same run."""

from __future__ import annotations

import numpy as np
import pytest

from laguna_ref.conformance.comparisons import Oracle
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.conformance.operations import evaluate_layer, layer_input, operations
from laguna_ref.conformance.precision import PRESETS, Precision
from laguna_ref.conformance.replay import routing_in, run
from laguna_ref.conformance.roundings import round_stochastically
from laguna_ref.conformance.sums import KINDS, Sums
from laguna_ref.conformance.variations import draw, truth_of, varied
from laguna_ref.conformance.varied_engine import through_int8
from laguna_ref.errors import InputError
from laguna_ref.numerics import BF16
from tests import tolerances
from tests.conformance.samples import prompt, tiny

TOKENS = np.array(prompt(12))
PLACES = np.arange(12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_order_of_a_sum_is_the_same_sum(kind: str) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(5, 200)).astype(np.float32)
    matrix = random.normal(size=(7, 200)).astype(np.float32)
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
    magnitudes = np.abs(x) @ np.abs(matrix).T
    error = np.abs(Sums(kind, random).dot(x, matrix) - exact) / magnitudes
    assert error.max() <= tolerances.roundings(2 * 200, np.float32)


def test_orders_differ_in_their_last_bits() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(50, 200)).astype(np.float32)
    matrix = random.normal(size=(70, 200)).astype(np.float32)
    results = [Sums(kind, random).dot(x, matrix) for kind in ("blas", "sequential", "permuted")]
    assert (results[0] != results[1]).any()
    assert (results[0] != results[2]).any()


def test_stochastic_rounding_keeps_the_mean() -> None:
    random = np.random.default_rng(0)
    x = np.full(20_000, 1 + 0.25 * 2.0**-7, np.float32)  # a quarter of the way up
    rounded = round_stochastically(x, random)
    assert set(rounded.tolist()) == {1.0, 1 + 2.0**-7}
    up = float((rounded > 1).mean())
    assert abs(up - 0.25) <= tolerances.STANDARD_DEVIATIONS * np.sqrt(0.25 * 0.75 / len(x))
    exact = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(round_stochastically(exact, random), exact)


def test_int8_is_within_half_a_step() -> None:
    x = np.random.default_rng(0).normal(size=(4, 96)).astype(np.float32)
    step = np.abs(x.reshape(4, 3, 32)).max(axis=2).repeat(32, axis=1) / 127
    units = np.abs(through_int8(x, 32) - x) / step
    assert units.max() <= 0.5 + tolerances.roundings(127, np.float32)


def test_the_truth_is_the_oracle_itself() -> None:
    model = tiny("checkpoint", "float64")
    truth = run(truth_of(model, PRESETS["float32"], Matrices()), TOKENS, PLACES)
    oracle = run(model, TOKENS, PLACES)
    assert list(truth) == list(oracle)
    for point, array in oracle.items():
        np.testing.assert_allclose(
            truth[point], array, rtol=0, atol=tolerances.FLOAT64_REORDERED * np.abs(array).max(),
            err_msg=point,
        )  # fmt: skip


@pytest.mark.parametrize("precision", PRESETS)
def test_a_seed_gives_one_run(precision: str) -> None:
    variation = draw(PRESETS[precision], 3)
    one, two = (
        run(varied(tiny(), variation, Matrices()), TOKENS, PLACES)["lm_head"] for _ in range(2)
    )
    np.testing.assert_array_equal(one, two)
    assert draw(PRESETS[precision], 4) != variation


def test_bfloat16_runs_hold_bfloat16_numbers_in_the_residual_stream() -> None:
    for seed in range(4):
        variation = draw(PRESETS["bfloat16"], seed)
        trace = run(varied(tiny("float"), variation, Matrices()), TOKENS, PLACES)
        x = trace["model.layers.3"]
        np.testing.assert_array_equal(x, x.astype(BF16).astype(x.dtype))


def test_declared_caches_hold_their_type() -> None:
    trace = run(varied(tiny(), draw(PRESETS["f16-kv"], 0), Matrices()), TOKENS, PLACES)
    keys = trace["model.layers.2.self_attn.k_cached"]
    np.testing.assert_array_equal(keys, keys.astype(np.float16).astype(keys.dtype))
    assert (keys != trace["model.layers.2.self_attn.k_rope"]).any()


def test_precisions_are_checked_and_survive_json() -> None:
    for precision in PRESETS.values():
        assert Precision.from_json(precision.to_json()) == precision
    with pytest.raises(InputError):
        Precision(activations="float8")
    with pytest.raises(InputError):
        Precision.from_json({"weight": "bf16"})


def test_operations_are_wired_as_the_model_is() -> None:
    """Each on the run's own values gives the run's own value."""
    model = truth_of(tiny(), PRESETS["float32"], Matrices())
    trace = run(model, TOKENS, PLACES)
    ops = operations(model, TOKENS, PLACES)
    assert [op.point for op in ops] == list(trace)
    for op in ops:
        assert set(op.inputs) <= set(trace)
        scale = np.abs(trace[op.point]).max()
        np.testing.assert_allclose(
            op.compute(trace), trace[op.point], rtol=0,
            atol=tolerances.FLOAT64_REORDERED * scale, err_msg=op.point,
        )  # fmt: skip


def test_a_layer_is_its_operations() -> None:
    oracle = Oracle(truth_of(tiny(), PRESETS["float32"], Matrices()), TOKENS, PLACES)
    for layer, ops in oracle.layers():
        given = {layer_input(layer): oracle.free[layer_input(layer)]}
        out = f"model.layers.{layer}"
        found = evaluate_layer(ops, given)[out]
        scale = np.abs(oracle.free[out]).max()
        np.testing.assert_allclose(
            found, oracle.free[out], rtol=0, atol=tolerances.FLOAT64_REORDERED * scale
        )


def test_replaying_its_own_choice_changes_nothing_and_another_does() -> None:
    model = truth_of(tiny(), PRESETS["float32"], Matrices())
    trace = run(model, TOKENS, PLACES)
    again = run(model, TOKENS, PLACES, routing_in(trace))
    np.testing.assert_array_equal(again["lm_head"], trace["lm_head"])
    other = routing_in(trace)
    ids, weights = other[3]
    other[3] = ((ids + 1) % 16, weights)
    changed = run(model, TOKENS, PLACES, other)
    np.testing.assert_array_equal(changed["model.layers.2"], trace["model.layers.2"])
    assert (changed["model.layers.3.mlp.experts"] != trace["model.layers.3.mlp.experts"]).any()
