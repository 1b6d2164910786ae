"""Verdicts: what conforms, what never may, and mistakes of the dump itself."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from laguna_ref.conformance import localise
from laguna_ref.conformance.comparisons import Oracle
from laguna_ref.conformance.conform_report import ConformReport
from laguna_ref.conformance.judge import judge
from laguna_ref.conformance.report import Report
from laguna_ref.errors import InputError
from laguna_ref.load import EMBEDDED, load
from tests.conformance.samples import (
    Dump,
    Golden,
    budget_of,
    dump_of,
    golden_of,
    prompt,
    tiny,
)


def judged(golden: Golden, dump: Dump) -> Report:
    return judge(golden, dump, model=tiny())


def printed(report: Report) -> str:
    text = io.StringIO()
    report.print(Console(file=text, width=160))
    return text.getvalue()


def test_a_legal_backend_conforms(golden: Golden, dump: Dump) -> None:
    report = judged(golden, dump)
    assert report.verdict == "conforming", report.reason
    assert report.exit_code == 0
    assert report.share_of_budget is not None
    assert report.share_of_budget < 1
    assert report.routing.compared == 24 * 7
    assert report.routing.violations == 0


def test_without_the_model_it_conforms_too_and_the_report_says_what_was_left_out(
    golden: Golden, dump: Dump
) -> None:
    report = judge(golden, dump)
    assert report.verdict == "conforming", report.reason
    assert "no model" in report.left_out[0]


def test_logits_alone_conform(golden: Golden, dump: Dump) -> None:
    assert judged(golden, dump.only("lm_head")).verdict == "conforming"


def test_a_dump_in_bfloat16_of_float32_values_diverges(golden: Golden, dump: Dump) -> None:
    from laguna_ref.numerics import BF16

    rounded = {k: v if "ids" in k else v.astype(BF16) for k, v in dump.points.items()}
    assert judged(golden, replace(dump, points=rounded)).verdict == "diverges"


# Vacuity: none of these may ever pass.


def test_an_empty_dump_is_inconclusive(golden: Golden, dump: Dump) -> None:
    report = judged(golden, replace(dump, points={}))
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)


def test_points_of_no_such_model_are_inconclusive(golden: Golden, dump: Dump) -> None:
    points = {"model.layers.90": dump.points["model.layers.0"]}
    assert judged(golden, replace(dump, points=points)).verdict == "inconclusive"


def test_other_tokens_are_inconclusive(golden: Golden, dump: Dump) -> None:
    tokens = dump.tokens.copy()
    tokens[3] += 1
    report = judged(golden, replace(dump, tokens=tokens))
    assert report.verdict == "inconclusive"
    assert "at 3" in report.reason


def test_other_positions_and_fewer_tokens_are_inconclusive(golden: Golden, dump: Dump) -> None:
    assert judged(golden, replace(dump, positions=dump.positions + 1)).verdict == "inconclusive"
    fewer = replace(dump, tokens=dump.tokens[:-1], positions=dump.positions[:-1])
    assert judged(golden, fewer).verdict == "inconclusive"


def test_another_config_is_inconclusive(golden: Golden, dump: Dump) -> None:
    config = tiny().config.to_dict() | {"rms_norm_eps": 1e-5}
    report = judged(golden, replace(dump, meta={"config": json.dumps(config)}))
    assert report.verdict == "inconclusive"
    assert "rms_norm_eps" in report.reason


def test_a_config_that_is_no_object_is_inconclusive(golden: Golden, dump: Dump) -> None:
    for text in ("{", "[]"):
        report = judged(golden, replace(dump, meta={"config": text}))
        assert report.verdict == "inconclusive"
        assert "the dump's config is no" in report.reason


def test_a_number_of_log_probabilities_that_is_none_is_bad_input(
    golden: Golden, dump: Dump
) -> None:
    meta = {"logits": "logprobs", "logprobs_k": "five"}
    with pytest.raises(InputError, match="logprobs_k: no number of tokens"):
        judged(golden, replace(dump, meta=meta))


def test_another_precision_is_inconclusive(golden: Golden, dump: Dump) -> None:
    report = judged(golden, replace(dump, meta={"precision": "bfloat16"}))
    assert report.verdict == "inconclusive"


def test_an_oracle_of_other_semantics_is_inconclusive(golden: Golden, dump: Dump) -> None:
    for settings in ({"dequant": "bf16"}, {"dequant": "exact", "kv_cache_fp8_layers": [0]}):
        report = judged(replace(golden, settings=settings), dump)
        assert report.verdict == "inconclusive"
        assert "golden" in report.reason


def test_a_golden_without_a_budget_is_inconclusive(golden: Golden, dump: Dump) -> None:
    assert judged(replace(golden, budget={}, budget_meta=None), dump).verdict == "inconclusive"


def test_without_logits_nothing_conforms(golden: Golden, dump: Dump) -> None:
    points = {name: array for name, array in dump.points.items() if name != "lm_head"}
    report = judged(golden, replace(dump, points=points))
    assert report.verdict == "inconclusive"
    assert "lm_head" in report.missing


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_diverges(golden: Golden, dump: Dump, value: float) -> None:
    array = dump.points["model.layers.4.self_attn.k_norm"].copy()
    array[5, 1, 2] = value
    report = judged(golden, dump.changed(**{"model.layers.4.self_attn.k_norm": array}))
    assert report.verdict == "diverges"
    assert report.first_divergence is not None
    assert (report.first_divergence.token, report.first_divergence.index) == (5, [1, 2])
    json.dumps(report.to_json(), allow_nan=False)
    assert (
        "  first divergence  model.layers.4.self_attn.k_norm, token 5\n"
        "  error             not a number\n"
        "  expected          a finite number at [1, 2]\n"
        f"  found             {value}\n"
    ) in printed(report)


def test_an_expert_chosen_twice_diverges(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.mlp.topk_ids"
    ids = dump.points[name].copy()
    ids[7] = ids[7][0]
    report = judged(golden, dump.changed(**{name: ids}))
    assert report.verdict == "diverges"
    assert f"names expert {ids[7, 0]} twice at token 7" in report.reason


def test_an_expert_that_does_not_exist_is_named_with_its_token(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.mlp.topk_ids"
    ids = dump.points[name].copy()
    ids[7] = np.arange(len(ids[7])) + 2
    ids[7, 0] = -1
    report = judged(golden, dump.changed(**{name: ids}))
    assert report.verdict == "diverges"
    assert report.reason == f"{name} names expert -1 at token 7, expected 0 to 15"
    first = report.first_divergence
    assert first is not None
    assert (first.token, first.found) == (7, ids[7].tolist())
    text = printed(report)
    assert "None" not in text.partition("judged by")[0]
    assert "number" not in text
    assert f"different experts, 0 to 15\n  found             {ids[7].tolist()}" in text


# Mistakes of the dump: named, and never a pass.


def mistaken(golden: Golden, dump: Dump, text: str, **points: Any) -> None:
    report = judged(golden, dump.changed(**points))
    assert report.verdict == "inconclusive", report.reason
    assert any(text in mistake for mistake in report.mistakes), report.mistakes


def test_heads_before_tokens(golden: Golden, dump: Dump) -> None:
    name = "model.layers.3.self_attn.q_rope"
    swapped = dump.points[name].transpose(1, 0, 2)
    mistaken(golden, dump, "[H, T, C] instead of [T, H, C]", **{name: swapped})


def test_transposed_heads(golden: Golden, dump: Dump) -> None:
    name = "model.layers.3.self_attn.attention"
    swapped = dump.points[name].transpose(0, 2, 1).reshape(dump.points[name].shape)
    mistaken(golden, dump, "heads are transposed", **{name: swapped})


def test_tokens_last(golden: Golden, dump: Dump) -> None:
    name = "model.layers.3.mlp"
    mistaken(golden, dump, "axes swapped", **{name: dump.points[name].T})


def test_logits_shifted_by_one(golden: Golden, dump: Dump) -> None:
    shifted = np.roll(dump.points["lm_head"], 1, axis=0)
    mistaken(golden, dump, "shifted by one", lm_head=shifted)


def test_log_softmax_for_logits(golden: Golden, dump: Dump) -> None:
    logits = dump.points["lm_head"].astype(np.float64)
    total = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    mistaken(golden, dump, "log-softmax", lm_head=(logits - total).astype(np.float32))


def test_hidden_state_after_the_norm(golden: Golden, dump: Dump) -> None:
    mistaken(golden, dump, "after the norm", **{"model.layers.7": dump.points["model.norm"]})


def test_another_shape_is_a_mistake(golden: Golden, dump: Dump) -> None:
    name = "model.layers.3.mlp"
    mistaken(golden, dump, "has shape [24, 64]", **{name: dump.points[name][:, :64]})


def test_a_row_short_everywhere_is_a_mistake(golden: Golden, dump: Dump) -> None:
    short = {name: array[:-1] for name, array in dump.points.items()}
    width = short["model.embed_tokens"].shape[1]
    report = judged(golden, replace(dump, points=short))
    assert report.verdict == "inconclusive", report.reason
    said = f"model.embed_tokens has shape [23, {width}], expected [24, {width}]"
    assert report.mistakes[0] == said
    assert report.reason.endswith(said)
    assert any("topk_ids has shape" in mistake for mistake in report.mistakes)


@pytest.mark.parametrize("part", ["ids", "weights"])
def test_routing_a_row_short_is_a_mistake(golden: Golden, dump: Dump, part: str) -> None:
    name = f"model.layers.4.mlp.topk_{part}"
    mistaken(golden, dump, f"{name} has shape [23, ", **{name: dump.points[name][1:]})


def test_ids_that_are_no_integers_are_a_mistake(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.mlp.topk_ids"
    ids = dump.points[name].astype(np.float32)
    mistaken(golden, dump, f"{name} holds float32, expected integers", **{name: ids})


def test_another_number_of_experts_a_token_diverges(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.mlp.topk_ids"
    report = judged(golden, dump.changed(**{name: dump.points[name][:, :1]}))
    assert report.verdict == "diverges"
    assert f"{name} has shape [24, 1], expected [24, " in report.reason


def test_joined_heads_are_no_mistake(golden: Golden, dump: Dump) -> None:
    name = "model.layers.3.self_attn.q_norm"
    joined = dump.points[name].reshape(24, -1)
    assert judged(golden, dump.changed(**{name: joined})).verdict == "conforming"


def test_a_mistake_does_not_hide_a_divergence(golden: Golden, dump: Dump) -> None:
    q, gate = "model.layers.3.self_attn.q_rope", "model.layers.5.self_attn.gate"
    report = judged(
        golden,
        dump.changed(**{q: dump.points[q].transpose(1, 0, 2), gate: dump.points[gate] * 1.01}),
    )
    assert report.verdict == "diverges"
    assert report.mistakes
    assert report.first_divergence is not None
    assert report.first_divergence.point == gate


# Routing


def test_flips_inside_the_noise_are_excused_and_what_follows_is_replayed() -> None:
    """A run as released: thirty runs held out would accuse one noisier run in thirty."""
    tokens = prompt(24)
    model = load(engine="numpy", numerics="bfloat16", dequant="exact", kv_cache="float")
    budget = budget_of("bfloat16", 24, 60, "float")
    golden = golden_of(tiny("float", "float64"), tokens, budget)
    report = judge(golden, dump_of(model, tokens), model=model)
    assert report.routing.excused > 0
    assert report.routing.violations == 0
    assert "replayed" in report.judged_by["modes"]
    assert report.verdict == "conforming", report.reason


def test_logits_of_chosen_tokens_only(golden: Golden, dump: Dump) -> None:
    """As for a long case: the token named is its place in the prompt."""

    @dataclass(frozen=True)
    class SomeLogits:
        at: tuple[int, ...]
        full: Any

    at = (3, 11, 20)
    some = replace(golden, logits=SomeLogits(at, golden.logits[list(at)]))
    few = dump.changed(lm_head=dump.points["lm_head"][list(at)])
    assert judged(some, few).verdict == "conforming"
    few.points["lm_head"][1] *= 1.01
    report = judged(some, few)
    assert report.first_divergence is not None
    assert (report.first_divergence.point, report.first_divergence.token) == ("lm_head", 11)


def test_a_choice_by_a_margin_outside_the_noise_is_a_violation(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.mlp.topk_ids"
    ids = dump.points[name].copy()
    unchosen = next(e for e in range(16) if e not in ids[7])
    ids[7, 1] = unchosen
    report = judged(golden, dump.changed(**{name: ids}))
    assert report.verdict == "diverges"
    assert report.routing.violations == 1
    assert report.first_divergence is not None
    assert report.first_divergence.point == name
    assert report.first_divergence.token == 7


def test_weights_that_do_not_add_up_are_counted_apart(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.mlp.topk_weights"
    report = judged(golden, dump.changed(**{name: dump.points[name] * 1.001}))
    assert (report.routing.violations, report.routing.excused) == (0, 0)
    assert (report.routing.weights_outside, report.routing.not_normalised) == (1, 1)


def test_most_tokens_contaminated_is_inconclusive(golden: Golden, dump: Dump) -> None:
    budget = dict(golden.budget) | {"contaminated": np.ones(24, np.float32)}
    report = judged(replace(golden, budget=budget), dump.only("lm_head"))
    assert report.verdict == "inconclusive"
    assert report.routing.contaminated == 24


# Output


def test_json_has_the_promised_keys(golden: Golden, dump: Dump) -> None:
    raw = json.loads(json.dumps(judged(golden, dump).to_json(), allow_nan=False))
    assert raw["schema"] == 1
    assert {
        "backend", "model", "verdict", "first_divergence", "points", "routing", "laws",
        "judged_by", "reason",
    } <= set(raw)  # fmt: skip
    assert {"point", "floor_units", "status"} <= set(raw["points"][0])
    assert {"compared", "excused", "violations", "contaminated"} <= set(raw["routing"])
    assert {
        "numerics", "dequant", "kv_cache", "precision", "false_alarm_rate", "runs",
    } <= set(raw["judged_by"])  # fmt: skip


def test_the_table_says_what_and_where(golden: Golden, dump: Dump) -> None:
    name = "model.layers.3.self_attn.q_norm"
    report = judged(golden, dump.changed(**{name: dump.points[name] * 1.001}))
    text = printed(report)
    assert f"first divergence  {name} (rms_norm)" in text
    assert "laguna-ref trace --numerics float64 --token-ids " in text


def test_another_checkpoint_is_named_in_the_command_and_the_embedded_one_is_not(
    tmp_path: Path,
) -> None:
    copied = shutil.copytree(EMBEDDED, tmp_path / "model")
    for path, model in ((None, ""), (copied, f"--model {copied} ")):
        oracle = Oracle(load(path, engine="numpy"), np.array([2]), np.array([0]))
        said = localise.command(oracle, "lm_head")
        assert said.startswith(f"laguna-ref trace {model}--numerics float64")


def test_the_page_stands_alone(golden: Golden, dump: Dump) -> None:
    pytest.importorskip("matplotlib")
    name = "model.layers.3.self_attn.q_norm"
    html = judged(golden, dump.changed(**{name: dump.points[name] * 1.001})).to_html()
    assert html.count("<svg") == 4
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in html


def both_pages(report: Report) -> tuple[str, str]:
    """That of one case, and that of a backend with this case alone."""
    pytest.importorskip("matplotlib")
    backend = {"name": "b", "version": None}
    return report.to_html(), ConformReport(backend, None, [report]).to_html()


def test_pages_say_what_is_no_number_and_where(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.self_attn.k_norm"
    array = dump.points[name].copy()
    array[5, 1, 2] = np.nan
    for page in both_pages(judged(golden, dump.changed(**{name: array}))):
        assert f"<code>{name}, token 5</code>" in page
        assert "a finite number at [1, 2]" in page
        assert "not a number" in page
        for odd in ("floor units (", "()", "<code></code>"):
            assert odd not in page


def test_pages_say_which_choice_is_none(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.mlp.topk_ids"
    ids = dump.points[name].copy()
    ids[7, 0] = -1
    for page in both_pages(judged(golden, dump.changed(**{name: ids}))):
        assert f"<code>{name} (choice of experts), token 7</code>" in page
        assert f"{ids[7].tolist()}" in page
        assert "names expert -1 at token 7" in page
        for odd in ("floor units (", "at []", "not a number", "<code></code>"):
            assert odd not in page


def test_pages_say_which_choice_costs_too_much(golden: Golden, dump: Dump) -> None:
    name = "model.layers.4.mlp.topk_ids"
    ids = dump.points[name].copy()
    ids[7, 1] = next(e for e in range(16) if e not in ids[7])
    for page in both_pages(judged(golden, dump.changed(**{name: ids}))):
        assert "floor units (deficit, added)" in page
        assert "the choice costs" in page
        assert "at []" not in page
