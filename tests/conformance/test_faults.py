"""Each fault changes the model, and first at the trace point that it names."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref.conformance.faults import CATALOGUE
from laguna_ref.conformance.faults.fault import Fault
from laguna_ref.conformance.replay import routing_in, run
from laguna_ref.golden.dump import execution_order
from tests.conformance.samples import prompt, tiny

COUNT = 80
"""Tokens: more than the window of laguna-tiny, which is 64."""
INVISIBLE = {
    "rope.attention_factor_twice": "laguna-tiny's attention factor is 1, and so is its square",
    "router.ties_to_higher_index": "no two of its router's scores are equal",
    "norm.weight_before_cast": "nothing is rounded in float32",
    "tokens.further_stop_ids_missing": "logits do not say where generation stops",
    "kv.overflow_to_nan_code": "no key or value of this prompt is beyond 464 scales",
    "kv.ring_one_short": "the ring is read only where a sequence comes in several calls",
    "kv.skip_list_off_by_one": "all layers are FP8",
    "packed.groups_twice_as_long": "a row of 128 columns is one group",
    "packed.scales_in_float16": "every scale is above 2**-14, where float16 holds it exactly",
}
"""Why laguna-tiny, in one call, cannot show them; ``test_faults_elsewhere.py`` and
``test_faults_apart.py`` do."""
ONLY_IN_FLOAT32 = {"norm.cast_before_weight", "router.bf16_logits"}
ONLY_IN_BFLOAT16 = {"norm.weight_before_cast"}
TOKENS, PLACES = np.array(prompt(COUNT, 0)), np.arange(COUNT)
"""In bfloat16 no two router scores of these tokens are equal."""


@lru_cache
def sound() -> dict[str, Any]:
    return run(tiny(), TOKENS, PLACES)


@lru_cache
def compiled() -> laguna_ref.Laguna:
    return laguna_ref.load(engine="numba", numerics="bfloat16")


@lru_cache
def sound_compiled() -> Any:
    return compiled()(TOKENS)


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_first_shows_where_it_says(fault: Fault) -> None:
    with_it = run(fault.plant(tiny()), TOKENS, PLACES)
    without = sound()
    differing = [
        name
        for name in sorted(without, key=execution_order)
        if not np.array_equal(with_it[name], without[name])
    ]
    if fault.name in INVISIBLE:
        assert not differing
    else:
        # Other scores may also change the choice, which stands before their weights.
        of_choice = fault.point.endswith("topk_ids")
        shown = [name for name in differing if of_choice or not name.endswith("topk_ids")]
        assert shown[0] == fault.first_point(tiny())


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_shows_in_kernels_and_in_bfloat16(fault: Fault) -> None:
    with_it = fault.plant(compiled())(TOKENS)
    same = np.array_equal(with_it, sound_compiled())
    assert same == (fault.name in (set(INVISIBLE) | ONLY_IN_FLOAT32) - ONLY_IN_BFLOAT16)


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_is_described(fault: Fault) -> None:
    assert fault.description
    assert fault.severity in ("fatal", "serious", "subtle")
    assert all(url.startswith("https://github.com/") for url in fault.references)


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_stays_when_the_routing_is_forced(fault: Fault) -> None:
    planted = fault.plant(tiny())
    free = run(planted, TOKENS, PLACES)
    forced = run(planted, TOKENS, PLACES, routing_in(free))
    assert np.array_equal(forced["lm_head"], free["lm_head"])


def test_planting_leaves_the_model_as_it_was() -> None:
    for fault in CATALOGUE.values():
        fault.plant(compiled())
    assert np.array_equal(compiled()(TOKENS), sound_compiled())
