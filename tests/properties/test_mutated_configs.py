"""A config with anything at all in any place loads or raises ConfigError, in one line."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from laguna_ref.checkpoint import preset
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import ConfigError
from tests.small import Config, quantised, small_config

DELETED = object()

BASES = (small_config(), quantised(small_config()), preset("xs2-int4", layers=5))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from([0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.text(max_size=8),
    st.sampled_from(["yarn", "dense", "per-element", "re:(", "re:.*", "Linear", "\n"]),
)
anything = st.one_of(
    scalars,
    st.lists(scalars, max_size=6),
    st.dictionaries(st.text(max_size=6), scalars, max_size=3),
    st.just(DELETED),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything inside a JSON value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found = []
    for key, inner in items:
        found += [(*path, key), *places(inner, (*path, key))]
    return found


@st.composite
def mutated(draw: st.DrawFn) -> Config:
    config = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(places(config)))
        inner = config
        for key in parents:
            inner = inner[key]
        value = draw(anything)
        if value is DELETED:
            del inner[last]
        elif draw(st.integers(0, 3)) == 0 and isinstance(inner[last], list):
            inner[last] = (inner[last] * 2)[: draw(st.integers(0, 2 * len(inner[last])))]
        else:
            inner[last] = value
    return config


@given(mutated())
def test_a_mutated_config_loads_or_is_refused(raw: Config) -> None:
    refusal, config = None, None
    try:
        config = LagunaConfig.from_dict(raw)
    except ConfigError as error:
        refusal = error
    event("loads" if refusal is None else str(refusal.key).split("[")[0])
    if config is None:
        assert len(str(refusal).splitlines()) == 1, str(refusal)
        assert len(str(refusal)) < 1000
        return
    for layer in config.layers:
        assert np.isfinite(layer.rope.inv_freq).all(), layer.rope
        assert np.isfinite(layer.rope.attention_factor), layer.rope
