"""One planted defect at a time: found, with the right layer and operation as first cause."""

from __future__ import annotations

import pytest

from laguna_ref.conformance.judge import judge
from tests.conformance.defects import DEFECTS, Defect
from tests.conformance.samples import Dump, Golden, dump_of, prompt, tiny

TOKENS = prompt(24)
OF_FP8 = {"KV scale"}
"""Defects that a float cache does not have."""


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_the_first_cause_is_named(defect: Defect, golden: Golden) -> None:
    report = judge(golden, dump_of(defect.plant(tiny()), TOKENS), model=tiny())
    assert report.verdict == "diverges", report.reason
    assert report.first_divergence is not None
    assert report.first_divergence.point == defect.point
    assert report.first_divergence.mode == "added"
    assert not report.mistakes


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_logits_alone_diverge(defect: Defect, golden: Golden, golden_float_kv: Golden) -> None:
    """From one of both cases: an FP8 cache hides small errors behind moved codes."""
    verdicts = []
    for case, cache in ((golden, "checkpoint"), (golden_float_kv, "float")):
        if cache == "checkpoint" or defect.name not in OF_FP8:
            model = tiny(cache)
            logits = dump_of(defect.plant(model), TOKENS).only("lm_head")
            verdicts.append(judge(case, logits, model=model).verdict)
    assert "diverges" in verdicts


def test_one_expert_is_named(golden: Golden) -> None:
    defect = next(defect for defect in DEFECTS if defect.name.startswith("one expert"))
    report = judge(golden, dump_of(defect.plant(tiny()), TOKENS), model=tiny())
    assert report.first_divergence is not None
    assert report.first_divergence.detail == "every token that went to expert 5, and no other"


def test_without_the_model_it_still_diverges(golden: Golden) -> None:
    defect = DEFECTS[1]
    report = judge(golden, dump_of(defect.plant(tiny()), TOKENS))
    assert report.verdict == "diverges"
    assert report.first_divergence is not None
    assert report.first_divergence.point == defect.point


def test_the_first_cause_stands_alone(golden: Golden) -> None:
    """Everything after it is wrong, and yet no other operation is accused."""
    defect = next(defect for defect in DEFECTS if defect.name == "input norm: 1 + weight")
    report = judge(golden, dump_of(defect.plant(tiny()), TOKENS), model=tiny())
    accused = {p.point for p in report.points if p.mode == "added" and p.status == "outside"}
    assert accused == {defect.point}
    replayed = [p for p in report.points if p.mode == "replayed" and p.status != "inside"]
    assert len(replayed) > 100  # what was inherited is seen as soon as inputs are not replaced


def test_layer_outputs_are_enough_to_name_the_layer(golden: Golden) -> None:
    defect = next(defect for defect in DEFECTS if defect.name == "gate of another head")
    full: Dump = dump_of(defect.plant(tiny()), TOKENS)
    kept = [
        name
        for name in full.points
        if name.count(".") == 2 or ".mlp.topk_" in name or name in ("lm_head", "model.embed_tokens")
    ]
    report = judge(golden, full.only(*kept), model=tiny())
    assert report.first_divergence is not None
    assert (report.first_divergence.layer, report.first_divergence.mode) == (3, "layers")
