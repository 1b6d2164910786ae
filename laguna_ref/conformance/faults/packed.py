"""Faults of the routed experts' weights: how packed codes and their scales are read.

They change nothing where experts are not packed, the exchange of gate and up excepted. A changed
weight has a name of its own, since dequantised weights are kept by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from laguna_ref.checkpoint.formats import PackedIntWeight, Weight
from laguna_ref.checkpoint.formats.packed_int import pack, unpack, words_per_row
from laguna_ref.conformance.faults.fault import Fault, changed
from laguna_ref.model import Laguna
from laguna_ref.weights import Experts, MLPWeights, SparseMLPWeights

Change = Callable[[PackedIntWeight], PackedIntWeight]


def _with_experts(
    model: Laguna, change: Callable[[Sequence[MLPWeights], int], MLPWeights]
) -> Laguna:
    """Every routed expert changed: ``change(experts of its layer, its number)``."""

    def of_layer(experts: Sequence[MLPWeights]) -> Experts:
        # Each is kept once changed: kernels hold addresses of its arrays.
        return Experts(len(experts), lambda expert: change(experts, expert))

    result = changed(model)
    layers = tuple(
        replace(layer, mlp=replace(layer.mlp, experts=of_layer(layer.mlp.experts)))
        if isinstance(layer.mlp, SparseMLPWeights)
        else layer
        for layer in model.weights.layers
    )
    result.weights = replace(model.weights, layers=layers)
    return result


def _each(model: Laguna, name: str, change: Change, bits: tuple[int, ...] = (4, 8)) -> Laguna:
    """Every packed matrix of a routed expert changed, if its codes have one of these ``bits``."""

    def of_weight(weight: Weight) -> Weight:
        if isinstance(weight, PackedIntWeight) and weight.bits in bits:
            return replace(change(weight), name=f"{weight.name}.{name}")
        return weight

    def of_expert(experts: Sequence[MLPWeights], expert: int) -> MLPWeights:
        old = experts[expert]
        return MLPWeights(
            of_weight(old.gate_proj), of_weight(old.up_proj), of_weight(old.down_proj)
        )

    return _with_experts(model, of_expert)


def _words(of_bytes: Any) -> Any:
    return np.ascontiguousarray(of_bytes).view(np.int32)


def _bytes(weight: PackedIntWeight) -> Any:
    return np.ascontiguousarray(weight.packed).view(np.uint8)


def gate_up_swapped(model: Laguna) -> Laguna:
    """Gate and up projections of routed experts are exchanged: silu is taken of the wrong one."""

    def swapped(experts: Sequence[MLPWeights], expert: int) -> MLPWeights:
        old = experts[expert]
        return MLPWeights(old.up_proj, old.gate_proj, old.down_proj)

    return _with_experts(model, swapped)


def nibbles_swapped(model: Laguna) -> Laguna:
    """The high half of a byte is read for the even column of an INT4 row, the low for the odd."""

    def swapped(weight: PackedIntWeight) -> PackedIntWeight:
        stored = _bytes(weight)
        return replace(weight, packed=_words((stored >> 4) | (stored << 4)))

    return _each(model, "nibbles_swapped", swapped, (4,))


def offset_missing(model: Laguna) -> Laguna:
    """INT4 codes are taken as they are stored, 0 to 15, without 8 being taken off."""

    def unsigned(weight: PackedIntWeight) -> PackedIntWeight:
        codes = unpack(weight.packed, 4, weight.shape[1]).astype(np.int16) + 8
        return replace(weight, packed=pack(codes, 8), bits=8)

    return _each(model, "offset_missing", unsigned, (4,))


def twos_complement(model: Laguna) -> Laguna:
    """Stored codes are taken for two's complement, instead of for the code plus an offset."""

    def signed(weight: PackedIntWeight) -> PackedIntWeight:
        sign = np.uint8(0x88 if weight.bits == 4 else 0x80)
        return replace(weight, packed=_words(_bytes(weight) ^ sign))

    return _each(model, "twos_complement", signed)


def groups_twice_as_long(model: Laguna) -> Laguna:
    """The first scales of a row are read for groups twice as long.

    Rows of a single group are read as they should be.
    """

    def shared(weight: PackedIntWeight) -> PackedIntWeight:
        groups = weight.scale.shape[1]
        scale = np.ascontiguousarray(weight.scale[:, np.arange(groups) // 2])
        return replace(weight, scale=scale)

    return _each(model, "groups_twice_as_long", shared)


def int8_as_int4(model: Laguna) -> Laguna:
    """INT8 experts are decoded as INT4, the scheme of the other layers."""

    def misread(weight: PackedIntWeight) -> PackedIntWeight:
        words = weight.packed[:, : words_per_row(weight.shape[1], 4)]
        return replace(weight, packed=np.ascontiguousarray(words), bits=4)

    return _each(model, "int8_as_int4", misread, (8,))


def scale_of_row_before(model: Laguna) -> Laguna:
    """The first group of each row keeps the scale of the row before."""

    def stale(weight: PackedIntWeight) -> PackedIntWeight:
        scale = weight.scale.copy()
        scale[1:, 0] = weight.scale[:-1, 0]
        return replace(weight, scale=scale)

    return _each(model, "scale_of_row_before", stale)


def scales_of_expert_before(model: Laguna) -> Laguna:
    """Each expert's codes are multiplied by the scales of the expert before it."""

    def stale(weight: Weight, other: Weight) -> Weight:
        if isinstance(weight, PackedIntWeight) and isinstance(other, PackedIntWeight):
            name = f"{weight.name}.scales_of_expert_before"
            return replace(weight, name=name, scale=other.scale)
        return weight

    def of_expert(experts: Sequence[MLPWeights], expert: int) -> MLPWeights:
        own, other = experts[expert], experts[expert - 1]  # before the first comes the last
        return MLPWeights(
            stale(own.gate_proj, other.gate_proj),
            stale(own.up_proj, other.up_proj),
            stale(own.down_proj, other.down_proj),
        )

    return _with_experts(model, of_expert)


def scales_in_float16(model: Laguna) -> Laguna:
    """Scales are held as float16, which loses digits below 2**-14.

    From there on it holds every bfloat16 number exactly.
    """

    def narrow(weight: PackedIntWeight) -> PackedIntWeight:
        largest = np.finfo(np.float16).max
        held = np.clip(weight.scale.astype(np.float32), -largest, largest).astype(np.float16)
        return replace(weight, scale=held.astype(np.float32).astype(weight.scale.dtype))

    return _each(model, "scales_in_float16", narrow)


_E = "mlp.experts"
FAULTS = (
    Fault("experts.gate_up_swapped", _E, "sparse", "fatal", gate_up_swapped),
    Fault("packed.nibbles_swapped", _E, "int4", "fatal", nibbles_swapped),
    Fault("packed.offset_missing", _E, "int4", "fatal", offset_missing),
    Fault("packed.twos_complement", _E, "packed", "fatal", twos_complement),
    Fault("packed.groups_twice_as_long", _E, "packed", "serious", groups_twice_as_long),
    Fault("packed.int8_as_int4", _E, "int8", "fatal", int8_as_int4),
    Fault("packed.scale_of_row_before", _E, "packed", "serious", scale_of_row_before),
    Fault("packed.scales_of_expert_before", _E, "packed", "serious", scales_of_expert_before),
    Fault("packed.scales_in_float16", _E, "packed", "subtle", scales_in_float16),
)
