"""The catalogue of faults: bugs that ports really had, each a small named mutation of the oracle.

One family a file. ``CATALOGUE`` holds them all by name.
"""

from __future__ import annotations

from laguna_ref.conformance.faults import attention, block, half, kv, packed, rope, router
from laguna_ref.conformance.faults.fault import Fault

CATALOGUE: dict[str, Fault] = {
    fault.name: fault
    for family in (attention, block, half, kv, packed, rope, router)
    for fault in family.FAULTS
}
