"""One row of a stored weight, from 32-bit words down to values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laguna_ref.checkpoint import Checkpoint
from laguna_ref.checkpoint.formats import DenseWeight, PackedIntWeight
from laguna_ref.checkpoint.formats.packed_int import unpack
from laguna_ref.checkpoint.names import TensorRule
from laguna_ref.errors import InputError
from laguna_ref.explain.closest import closest
from laguna_ref.numerics import Array
from laguna_ref.quantization import DENSE, WeightFormat

COUNTED = 1 << 24
"""Most codes of a matrix that are counted; rows beyond are left out."""


@dataclass(frozen=True)
class Group:
    """One group of a packed row: columns that share a scale."""

    columns: range
    scale: float
    """One step: the distance of two neighbouring values."""
    greatest: float
    """Greatest absolute value that is stored."""
    rms: float
    at_the_ends: int
    """Codes that are the least or the greatest there is."""

    @property
    def half_step(self) -> float:
        """What a weight that is rounded to the nearest value is off by at most. The quantiser
        divides in bfloat16 first, whose spacing is half a step from code 64 on, so that INT8 codes
        can be off by three quarters of a step; and it clamps the greatest weights. The original
        weights are not in the checkpoint."""
        return self.scale / 2

    @property
    def expected_error(self) -> float:
        """RMS error of rounding to the nearest value, if errors are spread evenly over a step:
        scale / sqrt(12); for INT8 codes, divided in bfloat16 first, it is a little more."""
        return self.scale / 12**0.5

    @property
    def relative_error(self) -> float:
        """``expected_error`` over the group's RMS; infinite for a group of zeros."""
        return self.expected_error / self.rms if self.rms else float("inf")


@dataclass(frozen=True)
class Packed:
    """What a packed row has and a dense one does not."""

    bits: int
    group_size: int
    words: Array
    """uint32: the words that hold the columns shown, whole."""
    first_word: int
    codes: Array
    """int8 [columns]: signed; the stored nibble or byte is the code plus 2^(bits - 1)."""
    groups: tuple[Group, ...]
    """All groups of the row."""
    counts: Array
    """int64 [2^bits]: how often each code, least first, occurs in the rows counted."""
    rows_counted: int
    """All, or as many as make 16 million codes."""
    changed_by_bf16: float
    """Share of the row's values that rounding the product to bfloat16 changes."""

    @property
    def columns_per_word(self) -> int:
        """8 or 4."""
        return 32 // self.bits


@dataclass(frozen=True)
class WeightView:
    """Some columns of one row."""

    name: str
    """The module, or the tensor where it is no Linear's."""
    shape: tuple[int, ...]
    stored_type: str
    """As safetensors names it: I32, BF16, F32, …"""
    format: WeightFormat
    row: int
    columns: range
    values: Array
    """float64 [columns], exact: code times scale."""
    bf16_values: Array
    """float64 [columns]: rounded to bfloat16, as released loaders hold it."""
    patterns: Array
    """Of a dense weight: the stored bits, unsigned; of a packed one: the stored codes, uint8."""
    packed: Packed | None


def weight(
    checkpoint: Checkpoint, name: str, row: int = 0, columns: range | None = None
) -> WeightView:
    """Part of a row of the tensor, or module, called ``name``.

    columns: by default the first 32; of a packed row whole words are taken, so more may come.
    A tensor of one axis counts as one row. Reads the row, and for the counts of codes up to 16
    million of its matrix. Raises InputError for names, rows and columns that there are not,
    naming tensors of similar names.
    """
    module = _module_of(checkpoint, name)
    if f"{module}.weight_packed" in checkpoint.tensors:
        found = checkpoint.weight(module)
        assert isinstance(found, PackedIntWeight)
        return _packed(found, *_place(found.shape, row, columns, 32 // found.bits, name))
    tensor = module if module in checkpoint.tensors else f"{module}.weight"
    array = checkpoint.tensor(tensor)
    stored = checkpoint.tensors[tensor].dtype
    flat = array if array.ndim == 2 else array.reshape(1, -1)
    return _dense(name, stored, array.shape, flat, *_place(flat.shape, row, columns, 1, name))


def _module_of(checkpoint: Checkpoint, name: str) -> str:
    """A module with a weight, or the tensor itself; raises InputError."""
    for rule in (checkpoint.rules.get(name), checkpoint.rules.get(f"{name}.weight_packed")):
        if rule is not None and rule.part in ("packed", "scale", "shape"):
            return rule.module
    for known in (name, f"{name}.weight"):
        if checkpoint.has(known):
            return known
    for rule in checkpoint.rules.values():
        if {name, f"{name}.weight", f"{name}.weight_packed"} & set(rule.aliases):
            return _module_of(checkpoint, rule.name)
    known_names = [_shown_as(rule) for rule in checkpoint.rules.values()]
    raise InputError("no such tensor", expected=closest(name, known_names), found=name)


def _shown_as(rule: TensorRule) -> str:
    """Parts of a packed Linear go by the name of its module."""
    return rule.module if rule.part in ("packed", "scale", "shape") else rule.name


def _place(
    shape: tuple[int, ...], row: int, columns: range | None, multiple: int, name: str
) -> tuple[int, range]:
    """Row and columns, checked; columns widened to whole words."""
    rows, width = shape
    if not 0 <= row < rows:
        raise InputError("no such row", key=name, expected=f"0 to {rows - 1}", found=row)
    if columns is None:
        columns = range(min(32, width))
    if not 0 <= columns.start < columns.stop <= width or columns.step != 1:
        raise InputError("no such columns", key=name, expected=f"within 0 to {width - 1}",
                         found=f"{columns.start} to {columns.stop - 1}")  # fmt: skip
    start = columns.start // multiple * multiple
    return row, range(start, min(-(-columns.stop // multiple) * multiple, width))


def _dense(
    name: str, stored: str, shape: tuple[int, ...], array: Array, row: int, columns: range
) -> WeightView:
    part = np.ascontiguousarray(array[row, columns.start : columns.stop])
    weight = DenseWeight(name, part[None])
    return WeightView(
        name=name,
        shape=shape,
        stored_type=stored,
        format=DENSE,
        row=row,
        columns=columns,
        values=weight.rows(dtype=np.float64)[0],
        bf16_values=_bf16(weight.rows(dtype=np.float64)[0]),
        patterns=part.view(np.dtype(f"u{part.dtype.itemsize}")),
        packed=None,
    )


def _packed(weight: PackedIntWeight, row: int, columns: range) -> WeightView:
    exact = weight.rows(row, row + 1, dtype=np.float64)[0]
    rounded = weight.rows(row, row + 1, dtype=np.float64, dequant="bf16")[0]
    codes = unpack(weight.packed[row : row + 1], weight.bits, weight.shape[1])[0]
    per_word, half = 32 // weight.bits, 1 << (weight.bits - 1)
    words = slice(columns.start // per_word, -(-columns.stop // per_word))
    counted = max(1, min(weight.shape[0], COUNTED // weight.shape[1]))
    every = unpack(weight.packed[:counted], weight.bits, weight.shape[1]).astype(np.int64)
    shown = slice(columns.start, columns.stop)
    packed = Packed(
        bits=weight.bits,
        group_size=weight.group_size,
        words=np.ascontiguousarray(weight.packed[row, words]).view(np.uint32),
        first_word=words.start,
        codes=codes[shown],
        groups=_groups(weight, row, exact, codes),
        counts=np.bincount(every.ravel() + half, minlength=2 * half),
        rows_counted=counted,
        changed_by_bf16=float(np.mean(exact != rounded)),
    )
    return WeightView(
        name=weight.name,
        shape=weight.shape,
        stored_type="I32",
        format=weight.format,
        row=row,
        columns=columns,
        values=exact[shown],
        bf16_values=rounded[shown],
        patterns=(codes[shown].astype(np.int16) + half).astype(np.uint8),
        packed=packed,
    )


def _groups(weight: PackedIntWeight, row: int, exact: Array, codes: Array) -> tuple[Group, ...]:
    half, size = 1 << (weight.bits - 1), weight.group_size
    groups = []
    for index, scale in enumerate(weight.scale[row].astype(np.float64).tolist()):
        columns = range(index * size, (index + 1) * size)
        values, of_group = exact[columns.start : columns.stop], codes[columns.start : columns.stop]
        groups.append(
            Group(
                columns=columns,
                scale=scale,
                greatest=float(np.abs(values).max()),
                rms=float(np.sqrt(np.mean(values**2))),
                at_the_ends=int(np.isin(of_group, (-half, half - 1)).sum()),
            )
        )
    return tuple(groups)


def _bf16(values: Array) -> Array:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16).astype(np.float64)
