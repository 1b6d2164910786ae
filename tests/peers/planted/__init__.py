"""Mistakes that ports make, written into Transformers' own Laguna by hand: one family a file."""

from __future__ import annotations

from tests.peers.planted import attention, ends, moe, rope
from tests.peers.planted.defect import Defect

DEFECTS: dict[str, Defect] = {
    defect.name: defect
    for family in (ends, rope, attention, moe)
    for defect in family.DEFECTS
}  # fmt: skip

__all__ = ["DEFECTS", "Defect"]
