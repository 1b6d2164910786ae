"""The name of the bug, from a trace and from logits alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from laguna_ref.conformance.adapters.oracle_backend import OracleBackend
from laguna_ref.conformance.budget import PromptRuns
from laguna_ref.conformance.diagnosis.diagnose import diagnose
from laguna_ref.conformance.diagnosis.diagnosis import Diagnosis
from laguna_ref.conformance.diagnosis.distances import by_operation
from laguna_ref.conformance.diagnosis.fit import coarse, fine
from laguna_ref.conformance.diagnosis.hypotheses import both, changed_by, turned
from laguna_ref.conformance.diagnosis.misfit import Observation, gather
from laguna_ref.conformance.diagnosis.prompts import ask, drawn
from laguna_ref.conformance.diagnosis.search import ENOUGH, PARTLY
from laguna_ref.conformance.faults import CATALOGUE, DIALS
from laguna_ref.conformance.faults.fault import changed
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.model import Laguna
from laguna_ref.numerics import round_to_bf16
from tests.conformance.samples import tiny

SHORT = 24


def culprit(plant: Any = None) -> Laguna:
    """laguna-tiny in float32 on compiled kernels: another engine than the oracle's."""
    import laguna_ref

    model = laguna_ref.load(numerics="float32", engine="numba", kv_cache="float")
    return model if plant is None else plant(model)


def diagnosed(model: Laguna, *, trace: bool, seed: int = 11) -> Diagnosis:
    oracle = tiny("float")
    random = np.random.default_rng(seed)
    tokens = random.integers(70, oracle.config.vocab_size, SHORT)
    backend = OracleBackend(model)
    points = ["*"] if trace else ["lm_head"]
    found = backend.trace(tokens.tolist(), points)
    observed = Observation(tokens, np.arange(SHORT), found)
    return diagnose(oracle, [observed], PRESETS["float32"])


@pytest.mark.parametrize("trace", [True, False], ids=["trace", "logits"])
@pytest.mark.parametrize(
    "name", ["rope.attention_factor_derived", "router.not_renormalised", "gate.sigmoid"]
)
def test_a_fault_is_named(name: str, trace: bool) -> None:
    result = diagnosed(culprit(CATALOGUE[name].plant), trace=trace)
    assert result.verdict == "named", result.reason
    assert result.looked_at == ("trace" if trace else "logits")
    assert name in [cause.fault for cause in result.causes if cause.rank == 1]
    assert result.exit_code == 1


def test_the_value_used_is_estimated() -> None:
    dial = next(dial for dial in DIALS if dial.name == "rope.attention_factor")
    result = diagnosed(culprit(lambda model: dial.plant(model, 1.1234)), trace=False)
    cause = result.causes[0]
    assert cause.fault == "rope.attention_factor"
    assert cause.parameters["attention_factor"] == pytest.approx(1.1234, rel=1e-3)
    assert cause.configured == {"attention_factor": 1.0}


def test_a_fault_that_goes_another_legal_way_is_recognised() -> None:
    """One cached value falls to another FP8 code in half of all runs with this fault, and every
    later token then lies far from the float64 run with it."""
    oracle = tiny("fp8")
    plant = CATALOGUE["rope.theta_of_full_layers"].plant
    tokens = np.array(drawn(oracle.config, 3)[0].tokens)
    legal = PromptRuns(oracle, tokens, np.arange(SHORT), PRESETS["float32"])
    alone, among = [], []
    for seed in range(2_000_000, 2_000_008):
        logits = np.asarray(plant(legal.variation(seed))(tokens))
        observed = Observation(tokens, np.arange(SHORT), {"lm_head": logits})
        (evidence,) = gather(oracle, [observed], PRESETS["float32"], "logits", 8, 0)
        alone.append(evidence.misfit(plant(evidence.truth)))
        among.append(evidence.nearest(plant, 16))
    assert max(alone) > 50
    assert max(among) < 10


def test_two_faults_at_once() -> None:
    first = CATALOGUE["rope.attention_factor_derived"].plant
    second = CATALOGUE["experts.shared_missing"].plant
    result = diagnosed(culprit(lambda model: second(first(model))), trace=True)
    best = result.causes[0]
    assert result.verdict == "named"
    assert best.fault.count(" and ") == 1
    assert "experts.shared_missing" in best.fault


def test_what_nothing_explains_is_unknown() -> None:
    def scrambled(model: Laguna) -> Laguna:
        def gate_values(logits: Any, activation: str, numerics: Any) -> Any:
            return model.engine.gate_values(np.cos(37 * logits), activation, numerics)

        return changed(model, gate_values=gate_values)

    result = diagnosed(culprit(scrambled), trace=True)
    assert result.verdict == "unknown", result.causes
    assert "% of the trace's misfit is at model.layers." in result.reason
    assert result.reason.endswith(".self_attn.gate")
    assert result.exit_code == 1


def test_what_rounds_is_named_though_no_two_runs_are_alike() -> None:
    """Rounding to float16 falls otherwise in every run: the fault explains less than half."""
    name = "half.residual_in_float16"
    result = diagnosed(culprit(CATALOGUE[name].plant), trace=False, seed=12)
    assert result.verdict == "named", result.reason
    assert result.causes[0].fault == name
    assert PARTLY < result.causes[0].explained <= ENOUGH


@pytest.mark.slow
def test_another_rounding_is_unknown() -> None:
    def residual_in_bfloat16(model: Laguna) -> Laguna:
        def add(residual: Any, x: Any, numerics: Any) -> Any:
            return round_to_bf16(model.engine.add(residual, x, numerics)).astype(x.dtype)

        return changed(model, add=add)

    result = diagnosed(culprit(residual_in_bfloat16), trace=False)
    assert result.verdict == "unknown", result.causes


def test_a_correct_backend_conforms() -> None:
    for trace in (True, False):
        result = diagnosed(culprit(), trace=trace)
        assert result.verdict == "conforming"
        assert not result.causes
        assert result.exit_code == 0


def test_a_trace_of_more_rows_than_tokens_is_wrong_and_no_input() -> None:
    """A backend that puts a token of its own before the prompt and shows it."""
    oracle, tokens, places = tiny("float"), np.arange(80, 84), np.arange(4)
    found = OracleBackend(oracle).trace([80, *tokens.tolist()], ["*"])
    away = by_operation(oracle, tokens, places, found)
    assert away["model.embed_tokens"].tolist() == [1] * 4
    assert list(away) == ["model.embed_tokens"]


def test_nothing_to_look_at_is_inconclusive() -> None:
    observed = Observation(np.arange(4), np.arange(4), {})
    result = diagnose(tiny("float"), [observed], PRESETS["float32"])
    assert result.verdict == "inconclusive"
    assert result.exit_code == 3


def test_log_probabilities_of_a_few_tokens_are_enough() -> None:
    name = "rope.attention_factor_derived"
    model = culprit(CATALOGUE[name].plant)
    tokens = np.random.default_rng(11).integers(70, 3000, SHORT)
    logits = np.asarray(model(tokens), np.float64)
    shown = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    least_shown = -np.sort(-shown, axis=1)[:, 19:20]
    seen = np.where(shown >= least_shown, shown, np.nan)
    observed = Observation(tokens, np.arange(SHORT), {"lm_head": seen}, partial=True)
    result = diagnose(tiny("float"), [observed], PRESETS["float32"])
    assert name in [cause.fault for cause in result.causes if cause.rank == 1]


def test_prompts_fit_the_model() -> None:
    config = tiny("float").config
    names = [prompt.name for prompt in drawn(config)]
    assert names == ["short", "beyond the window", "far"]
    asked = ask(OracleBackend(tiny("float")), config)
    assert len(asked.observations) == 3
    assert not asked.left_out
    assert not asked.failed


@pytest.mark.parametrize(("value", "partial"), [(np.nan, False), (np.inf, False), (np.inf, True)])
def test_what_is_no_number_is_wrong(value: float, partial: bool) -> None:
    oracle, tokens = tiny("float"), np.arange(80, 84)
    logits = np.asarray(oracle(tokens), np.float64)
    logits[2, 7] = value
    observed = Observation(tokens, np.arange(4), {"lm_head": logits}, partial)
    result = diagnose(oracle, [observed], PRESETS["float32"])
    assert (result.verdict, result.exit_code) == ("unknown", 1)
    assert result.reason == "lm_head, token 2: not a number"


def test_nothing_shown_is_inconclusive() -> None:
    nothing = {"lm_head": np.full((4, 3072), np.nan)}
    observed = Observation(np.arange(4), np.arange(4), nothing, partial=True)
    assert diagnose(tiny("float"), [observed], PRESETS["float32"]).verdict == "inconclusive"


def test_a_failed_prompt_keeps_it_from_conforming() -> None:
    sound = Diagnosis("conforming", "a legal run strays as far")
    assert sound.with_prompts(["far: no positions"], []).verdict == "conforming"
    failed = sound.with_prompts([], ["short: the backend failed: ValueError"])
    assert (failed.verdict, failed.exit_code) == ("inconclusive", 3)
    assert failed.to_json()["failed"] == ["short: the backend failed: ValueError"]
    named = Diagnosis("named", "x explains 100%").with_prompts([], ["short: failed"])
    assert named.verdict == "named"


def test_what_two_faults_set_is_all_told() -> None:
    model = tiny("float")
    by_name = {dial.name: dial for dial in DIALS}
    pair = both(
        turned(model, by_name["attention.scale"], 0.7),
        turned(model, by_name["router.scaling_factor"], 2.0),
    )
    assert changed_by(model, pair) == {
        "scale": (0.7, 1.0),
        "moe_routed_scaling_factor": (2.0, model.config.moe_routed_scaling_factor),
    }
    thetas = both(
        turned(model, by_name["rope.theta_full"], 100.0),
        turned(model, by_name["rope.theta_sliding"], 200.0),
    )
    assert sorted(value for value, _ in changed_by(model, thetas).values()) == [100.0, 200.0]


def test_the_least_of_a_valley() -> None:
    def cost(x: float) -> float:
        return (math.log(x) - 0.3) ** 2

    left, right = coarse(cost, 0.1, 10)
    assert left < math.exp(0.3) < right
    assert fine(cost, left, right)[0] == pytest.approx(math.exp(0.3), rel=1e-4)
