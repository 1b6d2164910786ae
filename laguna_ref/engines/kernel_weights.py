"""Stored weights as kernels take them: addresses in the memory map, with a format's name.

The arrays stay alive as long as the weights that own them; a kernel weight is used at once and
never kept beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from laguna_ref.checkpoint.formats import DenseWeight, PackedIntWeight, Weight
from laguna_ref.errors import CheckpointError
from laguna_ref.numerics import BF16, Array, Numerics
from laguna_ref.ops.linear import weight_rows
from laguna_ref.weights import Experts, MLPWeights
from numba_kernels import formats
from numba_kernels.simd import LANES

_views: WeakKeyDictionary[Weight, dict[tuple[str, str, bool], Any]] = WeakKeyDictionary()
_widened: WeakKeyDictionary[Weight, dict[tuple[str, str, bool], Array]] = WeakKeyDictionary()


def kernel_weight(weight: Weight, numerics: Numerics) -> Any:
    """A kernel's view of one weight; raises CheckpointError for a scale that is not finite."""
    views, key = _views.setdefault(weight, {}), _key(numerics)
    if key not in views:
        views[key] = _view(weight, numerics)
    return views[key]


def _view(weight: Weight, numerics: Numerics) -> Any:
    if isinstance(weight, DenseWeight):
        if weight.array.dtype == BF16 and _fits(weight, weight.array):
            return formats.Bf16(_address(weight.array), weight.shape[1])
        if weight.array.dtype == np.float32 and _fits(weight, weight.array):
            rounded = "weight" in numerics.rounds
            dense = formats.F32Rounded if rounded else formats.F32
            return dense(_address(weight.array), weight.shape[1])
    if isinstance(weight, PackedIntWeight) and _fits(weight, weight.packed, weight.group_size):
        scale = weight.checked_scale
        if scale.dtype in (BF16, np.float32) and scale.flags.c_contiguous:
            exact = numerics.dequant == "exact"
            packed = {
                (4, True): formats.Int4,
                (4, False): formats.Int4Rounded,
                (8, True): formats.Int8,
                (8, False): formats.Int8Rounded,
            }[weight.bits, exact]
            wide = int(scale.dtype == np.float32)
            return packed(
                _address(weight.packed), weight.shape[1], _address(scale), weight.group_size, wide
            )
    copy = _widen(weight, numerics)
    made = formats.F64 if copy.dtype == np.float64 else formats.F32
    return made(_address(copy), copy.shape[1])


class ExpertTable:
    """Addresses of one layer's experts, filled in as experts are first used."""

    def __init__(self, count: int) -> None:
        self.addresses = np.zeros((count, 3, 2), dtype=np.int64)
        self.known = np.zeros(count, dtype=bool)
        self.formats: tuple[Any, Any, Any] | None = None

    def add(self, expert: int, weights: MLPWeights, numerics: Numerics) -> None:
        """Checks an expert's weights and notes where they lie."""
        three = [
            kernel_weight(w, numerics)
            for w in (weights.gate_proj, weights.up_proj, weights.down_proj)
        ]
        for place, w in enumerate(three):
            self.addresses[expert, place] = w.data, getattr(w, "scales", 0)
        found = tuple(_without_addresses(w) for w in three)
        if self.formats is None:
            self.formats = found
        # Tuples of different formats are equal if their numbers are.
        pairs = [*zip(found, self.formats, strict=True), (found[0], found[1])]
        if not all(type(a) is type(b) and a == b for a, b in pairs):
            raise CheckpointError(
                "experts of one layer differ in format",
                tensor=weights.gate_proj.name,
                expected=[type(w).__name__ for w in self.formats],
                found=[type(w).__name__ for w in found],
            )
        self.known[expert] = True


_tables: WeakKeyDictionary[Any, dict[tuple[str, str, bool], ExpertTable]] = WeakKeyDictionary()


def expert_table(
    experts: Sequence[MLPWeights], used: Array, numerics: Numerics
) -> tuple[Any, Any, Array]:
    """Formats of (gate and up, down) projections, and addresses [E, 3, 2] of the experts used."""
    if isinstance(experts, Experts):
        tables = _tables.setdefault(experts, {})
        table = tables.setdefault(_key(numerics), ExpertTable(len(experts)))
    else:
        table = ExpertTable(len(experts))
    for expert in used[~table.known[used]].tolist():
        table.add(expert, experts[expert], numerics)
    assert table.formats is not None
    return table.formats[0], table.formats[2], table.addresses


def _without_addresses(w: Any) -> Any:
    return w._replace(data=0, scales=0) if hasattr(w, "scales") else w._replace(data=0)


def _fits(weight: Weight, array: Array, group_size: int = LANES) -> bool:
    """Whether kernels can read it as it lies: whole vectors in every row and group."""
    whole = weight.shape[1] % LANES == 0 and group_size % LANES == 0
    return whole and array.flags.c_contiguous


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _key(numerics: Numerics) -> tuple[str, str, bool]:
    return numerics.dtype.char, numerics.dequant, "weight" in numerics.rounds


def _widen(weight: Weight, numerics: Numerics) -> Array:
    """A dequantised copy with rows of whole vectors, for the odd shapes of small models."""
    copies = _widened.setdefault(weight, {})
    key = _key(numerics)
    if key not in copies:
        dense = weight_rows(weight, 0, weight.shape[0], numerics)
        missing = -dense.shape[1] % LANES
        copies[key] = np.ascontiguousarray(np.pad(dense, ((0, 0), (0, missing))))
    return copies[key]
