"""Every fault can be planted in compiled kernels and in bfloat16, and changes the logits there."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

import laguna_ref
from laguna_ref.conformance.faults import CATALOGUE
from laguna_ref.conformance.faults.fault import Fault
from laguna_ref.numerics import Array
from tests.conformance.samples import prompt
from tests.conformance.test_faults import COUNT, INVISIBLE

VISIBLE = {name: fault for name, fault in CATALOGUE.items() if name not in INVISIBLE}


@lru_cache
def compiled() -> tuple[laguna_ref.Laguna, Array]:
    model = laguna_ref.load(engine="numba", numerics="bfloat16")
    return model, model(prompt(COUNT))


@pytest.mark.parametrize("fault", VISIBLE.values(), ids=VISIBLE)
def test_it_changes_the_compiled_bfloat16_logits(fault: Fault) -> None:
    model, without = compiled()
    assert not np.array_equal(fault.plant(model)(prompt(COUNT)), without)


def test_planting_leaves_the_model_as_it_was() -> None:
    model, without = compiled()
    for fault in CATALOGUE.values():
        fault.plant(model)
    assert np.array_equal(model(prompt(COUNT)), without)
