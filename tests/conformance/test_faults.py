"""Each fault changes the model, and first at the trace point that it names."""

from __future__ import annotations

import numpy as np
import pytest

from laguna_ref.conformance.faults import CATALOGUE
from laguna_ref.conformance.faults.fault import Fault
from laguna_ref.conformance.replay import routing_in, run
from laguna_ref.golden.dump import execution_order
from tests.conformance.samples import prompt, tiny

COUNT = 80
"""Tokens: more than the window of laguna-tiny, which is 64."""
INVISIBLE = {
    "rope.attention_factor_twice": "laguna-tiny's attention factor is 1, and so is its square",
    "kv.overflow_to_nan_code": "no key or value of this prompt is beyond 464 scales",
    "kv.ring_one_short": "the ring is read only where a sequence comes in several calls",
    "kv.skip_list_off_by_one": "all layers are FP8",
    "packed.groups_twice_as_long": "a row of 128 columns is one group",
    "packed.scales_in_float16": "every scale is above 2**-14, where float16 holds it exactly",
}
"""Why laguna-tiny, in one call, cannot show them; ``test_faults_elsewhere.py`` does."""


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_first_shows_where_it_says(fault: Fault) -> None:
    tokens = np.array(prompt(COUNT))
    with_it = run(fault.plant(tiny()), tokens, np.arange(COUNT))
    without = run(tiny(), tokens, np.arange(COUNT))
    differing = [
        name
        for name in sorted(without, key=execution_order)
        if not np.array_equal(with_it[name], without[name])
    ]
    if fault.name in INVISIBLE:
        assert not differing
    else:
        # Other scores may also change the choice, which stands before their weights.
        shown = [name for name in differing if not name.endswith("topk_ids")]
        assert shown[0] == fault.first_point(tiny())


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_is_described(fault: Fault) -> None:
    assert fault.description
    assert fault.severity in ("fatal", "serious", "subtle")
    assert all(url.startswith("https://github.com/") for url in fault.references)


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_it_stays_when_the_routing_is_forced(fault: Fault) -> None:
    tokens, places = np.array(prompt(COUNT)), np.arange(COUNT)
    planted = fault.plant(tiny())
    free = run(planted, tokens, places)
    forced = run(planted, tokens, places, routing_in(free))
    assert np.array_equal(forced["lm_head"], free["lm_head"])
