"""How given arrays become the published tensors: names, dtypes, quantisation on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint.formats.packed_int import group_scales, pack, quantise
from laguna_ref.checkpoint.matching import settle_gates
from laguna_ref.checkpoint.names import TensorRule, tensor_rules
from laguna_ref.checkpoint.safetensors_file import DTYPES
from laguna_ref.checkpoint.safetensors_writer import TensorSpec
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import CheckpointError

Tensors = Mapping[str, NDArray[Any]]

_DTYPE_OF_CONFIG = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class Planned(NamedTuple):
    """A tensor to be written, and the call that makes its array when its turn comes."""

    spec: TensorSpec
    make: Callable[[], NDArray[Any]]


def plan(config: LagunaConfig, tensors: Tensors, *, weight_shape: bool) -> list[Planned]:
    """Every tensor of the published layout of ``config``, drawn from ``tensors``.

    Looks at names and, of the tiny key/value scales only, at arrays; everything else is
    fetched when a ``make`` is called.

    Raises CheckpointError for a tensor that is missing or has no place in the layout.
    """
    config = settle_gates(config, lambda name: np.shape(tensors[name]) if name in tensors else None)
    names = set(tensors)
    unused = set(names)
    planned = []
    for rule in tensor_rules(config):
        if rule.part == "shape":
            unused -= {rule.name, *rule.aliases}
            if weight_shape:
                planned.append(_weight_shape(rule))
            continue
        source = _source(rule, names)
        if source is None:
            if not rule.optional:
                raise CheckpointError(
                    "no array given for this tensor",
                    tensor=rule.name,
                    expected=f"{rule.name} {list(rule.shapes[0])}",
                )
            continue
        unused.discard(source)
        planned.append(_planned(rule, source, tensors, config))
    if unused:
        raise CheckpointError("array given that the config leaves no place for", tensor=min(unused))
    return planned


def _source(rule: TensorRule, names: set[str]) -> str | None:
    """The name under which the tensor was given: ready-made, or as a weight to quantise."""
    spelled = [rule.name, *rule.aliases]
    if rule.part in ("packed", "scale"):
        spelled += [f"{name.rpartition('.')[0]}.weight" for name in spelled]
    given = [name for name in spelled if name in names]
    if len(given) > 1:
        raise CheckpointError("one tensor given twice", tensor=rule.name, found=" and ".join(given))
    return given[0] if given else None


def _planned(rule: TensorRule, source: str, tensors: Tensors, config: LagunaConfig) -> Planned:
    float_dtype = _DTYPE_OF_CONFIG[config.torch_dtype]
    shape = rule.shapes[0]
    dtype = {"packed": "I32", "correction_bias": "F32"}.get(rule.part, float_dtype)
    if rule.part == "kv_scale":
        wide = tensors[source].dtype in (np.float32, np.float64)
        dtype = "F32" if wide else "BF16"
    spec = TensorSpec(rule.name, dtype, shape)
    to_quantise = rule.part in ("packed", "scale") and source.endswith(".weight")
    make = partial(_quantised if to_quantise else _as_given, rule, spec, source, tensors)
    return Planned(spec, make)


def _weight_shape(rule: TensorRule) -> Planned:
    return Planned(
        TensorSpec(rule.name, "I64", (2,)), partial(np.array, rule.matrix, dtype=np.int64)
    )


def _as_given(rule: TensorRule, spec: TensorSpec, source: str, tensors: Tensors) -> NDArray[Any]:
    """The array itself, in the stored dtype; scales and words may not change by the cast."""
    array = np.asarray(tensors[source])
    if rule.part == "kv_scale" and array.shape == ():
        array = array.reshape(1)
    _check_shape(array, spec.shape, source)
    with np.errstate(over="ignore"):
        stored = array.astype(DTYPES[spec.dtype], copy=False)
    if rule.part != "packed" and not np.array_equal(np.isfinite(stored), np.isfinite(array)):
        raise CheckpointError(
            "a value is beyond the stored dtype",
            tensor=source,
            expected=f"at most {np.finfo(np.float32).max:.3g} in size",
            found=str(np.abs(array).max()),
        )
    if rule.part in ("packed", "scale") and not np.array_equal(stored, array):
        raise CheckpointError(
            "array does not survive the stored dtype",
            tensor=source,
            expected=spec.dtype,
            found=str(array.dtype),
        )
    return stored


def _quantised(rule: TensorRule, spec: TensorSpec, source: str, tensors: Tensors) -> NDArray[Any]:
    """Words or scales of a weight given in floating point.

    Words and scales of one weight are written far apart (see ``aligned``), so the weight is
    fetched once for each.
    """
    weight = np.asarray(tensors[source])
    _check_shape(weight, rule.matrix, source)
    bits, group = rule.format.bits or 0, rule.format.group_size or weight.shape[1]
    try:
        if rule.part == "scale":
            return group_scales(weight, bits, group).astype(DTYPES[spec.dtype])
        return pack(quantise(weight, bits, group)[0], bits)
    except ValueError as error:
        raise CheckpointError(str(error), tensor=source) from None


def _check_shape(array: NDArray[Any], shape: tuple[int, ...], source: str) -> None:
    if array.shape != shape:
        raise CheckpointError(
            "array of the wrong shape",
            tensor=source,
            expected=list(shape),
            found=list(array.shape),
        )


def shards(planned: list[Planned], max_bytes: int) -> Iterator[list[Planned]]:
    """Cut the list into runs of at most ``max_bytes``, at least one tensor each."""
    run: list[Planned] = []
    size = 0
    for item in planned:
        if run and size + item.spec.nbytes > max_bytes:
            yield run
            run, size = [], 0
        run.append(item)
        size += item.spec.nbytes
    if run:
        yield run
