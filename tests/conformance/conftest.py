"""Budgets are measured once a process; small ones, since the defects planted here are large."""

from __future__ import annotations

import pytest

from tests.conformance import samples

TOKENS = 24
"""Longer than every window planted; the prompt meets every expert of laguna-tiny but few ties."""
RUNS = 60
"""Thirty runs held out state a false-alarm rate of 1/31, which is enough where errors are planted;
the rate itself is tested by ``test_calibration.py``."""


@pytest.fixture(scope="session")
def golden() -> samples.Golden:
    """laguna-tiny as published, FP8 cache, judged as float32."""
    budget = samples.budget_of("float32", TOKENS, RUNS)
    return samples.golden_of(samples.tiny("checkpoint", "float64"), samples.prompt(TOKENS), budget)


@pytest.fixture(scope="session")
def golden_float_kv() -> samples.Golden:
    """The same with a float cache."""
    budget = samples.budget_of("float32", TOKENS, RUNS, "float")
    return samples.golden_of(samples.tiny("float", "float64"), samples.prompt(TOKENS), budget)


@pytest.fixture(scope="session")
def dump() -> samples.Dump:
    """A legal backend: the plain engine in float32."""
    return samples.dump_of(samples.tiny(), samples.prompt(TOKENS))
