"""The catalogue of faults: bugs that ports really had, each a small named mutation of the oracle.

One family a file. ``CATALOGUE`` holds them all by name; ``DIALS`` are those with a number in them.
"""

from __future__ import annotations

from laguna_ref.conformance.faults import (
    attention,
    block,
    gate,
    half,
    kv,
    norms,
    packed,
    rope,
    router,
    tokens,
)
from laguna_ref.conformance.faults.dial import DIALS
from laguna_ref.conformance.faults.fault import Fault

_FAMILIES = (tokens, rope, attention, gate, kv, norms, router, block, packed, half)
CATALOGUE: dict[str, Fault] = {fault.name: fault for family in _FAMILIES for fault in family.FAULTS}

__all__ = ["CATALOGUE", "DIALS", "Fault"]
