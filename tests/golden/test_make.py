"""What a golden holds is what the model computes, however the tokens are cut into calls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import laguna_ref
from laguna_ref import Recorder
from laguna_ref.errors import InputError
from laguna_ref.golden import make
from laguna_ref.golden.golden_file import results_of
from laguna_ref.golden.routing import margins
from tests import tolerances
from tests.golden.models import TOKENS, case, loaded
from tests.small import Small, models, small, small_config, tokens_for, uniform_config


def test_points_logits_and_routing_are_the_models() -> None:
    model, recorder = loaded(), Recorder()
    logits = model(TOKENS, trace=recorder)
    found = make(model, case(points=("*",)))
    elsewhere = {n for n in recorder if n.endswith(("lm_head", ".topk_ids", ".topk_weights"))}
    assert list(found.points) == [name for name in recorder if name not in elsewhere]
    for name, value in found.points.items():
        assert np.array_equal(value, recorder[name]), name
    assert found.logits.full is not None
    assert np.array_equal(found.logits.full, logits[[0, 8]])
    assert list(found.routing) == [1, 2]
    for index, layer in found.routing.items():
        assert np.array_equal(layer.ids, recorder[f"model.layers.{index}.mlp.topk_ids"])
        assert np.array_equal(layer.weights, recorder[f"model.layers.{index}.mlp.topk_weights"])


@pytest.mark.parametrize("chunks", [(4, 4, 1), (1,) * 9, (6, 1, 1, 1)])
def test_calls_change_no_bit(chunks: tuple[int, ...]) -> None:
    model = loaded(engine="numba")
    whole = make(model, case(logits_at=None))
    cut = make(model, case(logits_at=None, chunks=chunks))
    assert results_of(cut) == results_of(whole)


def test_positions_are_those_of_the_case() -> None:
    positions = tuple(range(100, 109))
    found = make(loaded(), case(positions=positions, chunks=(5, 4), logits_at=None))
    at_once = loaded()(TOKENS, positions=positions)
    assert found.positions == positions
    assert found.logits.full is not None
    error = tolerances.model_error(loaded().config, 9, np.float64)
    tolerances.assert_within(found.logits.full, at_once, error, "logits", unit=tolerances.UNIT)


@given(models(), st.sampled_from(["float64", "float32", "bfloat16"]))
def test_margins_are_those_of_the_definition(model: Small, numerics: str) -> None:
    run = model.load(numerics=numerics)
    found = make(run, case(tokens=tuple(tokens_for(model.config, 3)), chunks=(3,), logits_at=(),
                           kv_cache="checkpoint", points=()))  # fmt: skip
    recorder = Recorder()
    run(tokens_for(model.config, 3), trace=recorder)
    for index, layer in found.routing.items():
        bias = run.weights.layers[index].mlp.e_score_correction_bias  # type: ignore[union-attr]
        logits = recorder[f"model.layers.{index}.mlp.gate"].astype(np.float64)
        score = SCORES[model.config.get("moe_router_score_func", "sigmoid")]
        selection = np.sort(score(logits) + bias, axis=-1)[:, ::-1]
        top_k = model.config["num_experts_per_tok"]
        if top_k == selection.shape[1]:
            assert np.all(layer.margin == np.inf)
            continue
        expected = selection[:, top_k - 1] - selection[:, top_k]
        noise = tolerances.score_error(run.numerics, float(np.abs(selection).max()))
        np.testing.assert_allclose(layer.margin, expected, rtol=0, atol=noise)
        assert np.all(layer.margin >= 0)


SCORES: dict[str, Any] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True),
    "sqrtsoftplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
}


def test_margins_have_equal_bits_by_either_way_of_cutting() -> None:
    model = loaded(engine="numba")
    recorder = Recorder("*.gate")
    model(TOKENS, trace=recorder)
    logits = recorder["model.layers.1.mlp.gate"]
    whole = margins(model, 1, logits)
    assert np.array_equal(whole, np.concatenate([margins(model, 1, row[None]) for row in logits]))


def test_a_model_without_routers() -> None:
    model = small(uniform_config(2, mlp="dense")).load(numerics="float64")
    found = make(model, case(kv_cache="float", points=()))
    assert found.routing == {}
    assert found.points == {}


def test_large_vocabularies_are_summed_up() -> None:
    found = make(loaded(), case(), full_logits_up_to=39)
    assert found.logits.full is None
    assert found.logits.summary is not None
    assert found.logits.summary.vocabulary == 40
    full = make(loaded(), case(), full_logits_up_to=40).logits.full
    assert full is not None
    assert np.array_equal(found.logits.summary.top[:, 0], full.max(axis=-1))


def test_the_models_cache_must_be_the_cases() -> None:
    with pytest.raises(InputError, match=r"not the one of case plain.*fp8: 3 FP8 layers; found 0"):
        make(loaded("float"), case())
    skipping = loaded("fp8", kv_cache_skip_layers=("sliding_window",))
    with pytest.raises(InputError, match="not the one of case plain"):
        make(skipping, case())
    found = make(skipping, case(), kv_cache_skip_layers=["sliding_window"])
    assert found.settings["kv_cache_fp8_layers"] == [0]


def test_a_budget_is_kept_as_it_is() -> None:
    def measured(model: Any, one: Any) -> Any:
        assert (model, one) == (loaded(), case())
        return {"scale/model.norm": np.ones(3, np.float32)}, {"runs": 64}

    found = make(loaded(), case(), budget=measured)
    assert found.budget["scale/model.norm"].tolist() == [1, 1, 1]
    assert found.budget_meta == {"runs": 64}


def test_progress_counts_tokens() -> None:
    seen: list[int] = []
    make(loaded(), case(chunks=(4, 4, 1)), progress=seen.append)
    assert seen == [4, 4, 1]


def test_every_setting_is_there(tmp_path: Path) -> None:
    config = small_config() | {"extra_key": 1}
    small().write(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    model = laguna_ref.load(
        tmp_path / "model", numerics="float64", engine="numpy", ignore_config_keys=["extra_key"]
    )
    settings = make(model, case(kv_cache="float")).settings
    effective = settings["effective_config"]
    used = set(config) - {"extra_key", "model_type", "layer_types", "mlp_layer_types",
                          "num_attention_heads", "num_attention_heads_per_layer",
                          "rope_parameters"}  # fmt: skip
    assert used <= set(effective)
    assert effective["ignored"] == {"extra_key": 1}
    assert effective["defaults"]["norm_topk_prob"] is True
    assert [layer["num_heads"] for layer in effective["layers"]] == [4, 6, 2]
    assert effective["layers"][0]["rope"]["factor"] == 4.0
    assert "mlp.experts.*.gate_proj" in effective["layers"][1]["formats"]
    assert settings["engine"] == "numpy"
    assert {"laguna_ref", "numpy", "numba", "python"} <= set(settings["versions"])


def test_an_engine_with_a_replaced_function_says_so() -> None:
    from tests.small import replaced

    model = replaced(loaded(), add=loaded().engine.add)
    assert make(model, replace(case(), name="other")).settings["engine"] == "replaced"
