"""Weights in every stored format and activations, drawn from a seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint import DenseWeight, PackedIntWeight
from laguna_ref.checkpoint.formats.packed_int import pack
from laguna_ref.numerics import BF16, BFLOAT16, FLOAT32, FLOAT64, Numerics
from laguna_ref.weights import MLPWeights

Array = NDArray[Any]
Stored = DenseWeight | PackedIntWeight

ALL_NUMERICS = {n.name: n for n in (FLOAT64, FLOAT32, BFLOAT16)}
DEQUANTISED = ALL_NUMERICS | {
    "float64, bf16 weights": replace(FLOAT64, dequant="bf16"),
    "float32, bf16 weights": replace(FLOAT32, dequant="bf16"),
    "bfloat16, exact weights": replace(BFLOAT16, dequant="exact"),
}
DENSE = {"bf16": BF16, "f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}
PACKED = {"int4": 4, "int8": 8}
FORMATS = (*DENSE, *PACKED)


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def weight(
    stored: str, rows: int, columns: int, seed: int = 0, group: int = 0, scales: Any = BF16
) -> Stored:
    """A matrix of about unit gain. ``group`` 0 is one group a row."""
    random = generator(seed, rows, columns)
    if stored in DENSE:
        array = random.normal(0, columns**-0.5, (rows, columns)).astype(DENSE[stored])
        return DenseWeight(f"{stored}[{rows}, {columns}]", array)
    bits, group = PACKED[stored], group or columns
    half = 1 << (bits - 1)
    codes = random.integers(-half, half, (rows, columns))
    scale = np.exp(random.normal(0, 0.3, (rows, columns // group))) * 1.7 / half * columns**-0.5
    name = f"{stored}[{rows}, {columns}], groups of {group}"
    return PackedIntWeight(
        name, pack(codes, bits), scale.astype(scales), bits, group, (rows, columns)
    )


def activations(numerics: Numerics, *shape: int, seed: int = 1) -> Array:
    """Normal values as the numerics hold them: bfloat16 ones are rounded."""
    values = generator(seed, *shape).normal(size=shape)
    return numerics.round_at("linear", values.astype(numerics.dtype))


def expert(stored: str, hidden: int, width: int, seed: int = 0, group: int = 0) -> MLPWeights:
    gate, up, down = (
        weight(stored, *shape, seed=3 * seed + part, group=group)
        for part, shape in enumerate([(width, hidden), (width, hidden), (hidden, width)])
    )
    return MLPWeights(gate, up, down)


def dense_twin(weight: Stored, numerics: Numerics) -> Array:
    """A weight as numbers, dequantised and rounded as the numerics see it."""
    rows = weight.rows(dtype=numerics.dtype.type, dequant=numerics.dequant)
    if isinstance(weight, DenseWeight) and weight.array.dtype != BF16:
        return numerics.round_at("weight", rows)
    return rows
