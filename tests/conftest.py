"""Hypothesis profiles: ``ci`` draws the same examples every time, ``nightly`` many new ones.

And one thread of matrix products for each worker of a parallel run.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Workers share the cores: matrix products that wait for each other's threads cost several times as
# much.
# NumPy reads it when it is first imported, which no plugin does.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile(
    "ci",
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=_SLOW_IS_FINE,
    print_blob=True,
)
settings.register_profile(
    "dev", max_examples=30, deadline=None, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "nightly",
    max_examples=2000,
    deadline=None,
    suppress_health_check=_SLOW_IS_FINE,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
