"""Every law kills the mutants planted for it; a law that kills none would say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.laws import LAWS, replay, run
from tests.meta.law_mutants import MUTANTS, Mutant
from tests.meta.sources import ROOT

EXAMPLES = 60


@pytest.fixture(autouse=True)
def _mutants_may_overflow() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_is_killed_by_its_law(mutant: Mutant) -> None:
    (result,) = run(mutant.open, examples=EXAMPLES, seed=0, names=[mutant.law])
    assert result.status == "broken", result
    assert "tokens" in result.detail
    assert "num_hidden_layers" in result.detail
    assert replay(mutant.open, None, result.reproduce).status == "broken"
    assert replay(opener("oracle"), None, result.reproduce).status == "holds"


def test_every_law_has_a_mutant() -> None:
    assert {law.name for law in LAWS} == {mutant.law for mutant in MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_docs_name_it_beside_its_law(mutant: Mutant) -> None:
    lines = (ROOT / "docs" / "laws.md").read_text("utf-8").splitlines()
    of_law = [line for line in lines if line.startswith(f"| `{mutant.law}`")]
    assert len(of_law) == 1
    assert mutant.name in of_law[0]


def test_the_docs_give_each_laws_demand_and_needs() -> None:
    text = Path(ROOT / "docs" / "laws.md").read_text("utf-8")
    for law in LAWS:
        (line,) = [row for row in text.splitlines() if row.startswith(f"| `{law.name}`")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2] == ("bits" if law.exact else "budget")
        assert cells[3] == (", ".join(f"`{need}`" for need in law.needs) or "none")
