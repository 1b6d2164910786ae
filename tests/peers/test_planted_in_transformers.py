"""Defects planted by hand in Transformers' Laguna: are they found, and are they named?

``diagnose`` recognises the faults of its catalogue. Here nobody used the catalogue: the mistakes
are written into another implementation, as a port would make them. ``-m ""`` runs them all and
prints a line for each.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref.conformance.faults import CATALOGUE, DIALS
from tests.peers.planted import DEFECTS, attention, moe
from tests.peers.planted.defect import Defect, Plant, planted
from tests.peers.planted.examine import backend_and_oracle, diagnosed, observed, ranked, told

pytestmark = pytest.mark.peer

WAYS = {"trace": 1, "logits": 3}
"""How to look, and the last rank at which the fault must be."""
QUICK = (
    "attention_factor_left_out", "heads_dealt_out", "gate_of_the_model_card", "softmax_router",
    "nibbles_the_other_way",
)  # fmt: skip
"""Of different kinds; the others take too long for every run."""
TOKENS = list(range(80, 180))
"""Beyond the window."""


def each(*names: str) -> list[Any]:
    """Defects as parameters, slow but for a few."""
    return [
        pytest.param(DEFECTS[name], id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in names
    ]


@cache
def seen(name: str) -> list[Any]:
    """Observed once for both ways to look."""
    return observed(DEFECTS[name])


KNOWN = [name for name, defect in DEFECTS.items() if defect.faults]
STRANGE = [name for name, defect in DEFECTS.items() if not defect.faults]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("defect", each(*KNOWN))
def test_a_planted_defect_is_named(defect: Defect, way: str, figures: dict[str, str]) -> None:
    result = diagnosed(defect, seen(defect.name), way)
    figures[f"{defect.name}, {way}"] = told(result, defect)
    if defect.hidden and way == "logits":
        assert result.verdict == "conforming", defect.hidden
        return
    assert result.verdict == "named", result.reason
    rank = ranked(result, defect)
    assert rank is not None, result.reason
    assert rank <= WAYS[way], result.reason


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("defect", each(*STRANGE))
def test_a_defect_that_no_fault_explains_is_found_and_not_misnamed(
    defect: Defect, way: str, figures: dict[str, str]
) -> None:
    result = diagnosed(defect, seen(defect.name), way)
    figures[f"{defect.name}, {way}"] = told(result, defect)
    assert result.verdict == "unknown", result.reason
    if way == "trace":
        assert result.reason.endswith(f"misfit is at {defect.point}"), result.reason


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cache_type", ["float", "fp8"])
def test_without_a_defect_nothing_is_found(cache_type: str, way: str) -> None:
    prompts = ("short", "beyond the window")
    sound = Defect(lambda model, undo: None, (), prompts=prompts, cache=cache_type)
    result = diagnosed(sound, observed(sound), way)
    assert result.verdict == "conforming", result.reason


def test_every_defect_changes_the_model_and_is_undone() -> None:
    for name, defect in DEFECTS.items():
        backend, _ = backend_and_oracle(defect.cache)
        before = backend.logits(TOKENS)
        with planted(backend.model, defect):
            during = backend.logits(TOKENS)
        assert not np.array_equal(during, before), name
        np.testing.assert_array_equal(backend.logits(TOKENS), before, err_msg=name)


def the_right_router(model: Any, undo: ExitStack) -> None:
    moe.route(model, undo)


def the_right_block(model: Any, undo: ExitStack) -> None:
    moe.rewritten(model, undo, lambda routed, shared, factor: routed * factor + shared)


def the_right_attention(model: Any, undo: ExitStack) -> None:
    attention.rewritten(model, undo, attention.right_gate)


@pytest.mark.parametrize("plant", [the_right_router, the_right_block, the_right_attention])
def test_what_is_written_once_more_computes_the_same(plant: Plant) -> None:
    """Nothing is wrong with the rewritten methods but what is meant to be."""
    backend, _ = backend_and_oracle("float")
    before = backend.logits(TOKENS)
    with planted(backend.model, Defect(plant, ())):
        np.testing.assert_array_equal(backend.logits(TOKENS), before)


def test_the_published_table_has_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    published = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert published == list(DEFECTS)


def test_they_are_many_and_name_faults_that_there_are() -> None:
    assert len(KNOWN) >= 20
    names = {*CATALOGUE, *(dial.name for dial in DIALS)}
    meant = {fault for defect in DEFECTS.values() for fault in defect.faults}
    assert meant <= names, meant - names
