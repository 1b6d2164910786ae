"""Dumps: what another implementation computed, in any safetensors file with trace-point names.

docs/golden-format.md says how to write one. A dump is memory-mapped: reading it looks at every
byte once, to find what is not finite, and copies none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laguna_ref.checkpoint.safetensors_file import SafetensorsFile
from laguna_ref.golden.errors import DumpError, open_safetensors
from laguna_ref.numerics import Array
from laguna_ref.trace import ATTENTION_POINTS, LAYER_POINTS, SPARSE_POINTS

FLOATS = ("F32", "BF16", "F16", "F64")
INTEGERS = ("I64", "I32")
REQUIRED = ("tokens", "positions")
BLOCK_BYTES = 1 << 22

_EXPONENT = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00),
             "F64": ("<u8", 0x7FF0000000000000)}  # fmt: skip
"""Unsigned view, and the exponent bits, all of which are set in NaN and infinity only."""
_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d*)(?:\.(.+))?")
_WHOLE = ("model.embed_tokens", "model.norm", "lm_head")
_IN_LAYER = tuple((ATTENTION_POINTS | SPARSE_POINTS | LAYER_POINTS).keys())


@dataclass(frozen=True)
class DumpRouting:
    """The choices of one sparse layer, as the dump states them."""

    ids: Array
    """[T, K] integers, in any order."""
    weights: Array | None
    """[T, K] floats in the order of ``ids``; None where the dump has none."""


@dataclass(frozen=True)
class Dump:
    """A dump as it lies in its file; the arrays are read-only views of it."""

    tokens: Array
    """[T] int64."""
    positions: Array
    """[T] int64."""
    points: Mapping[str, Array]
    """Trace point -> value [T, ...], float32, bfloat16, float16 or float64, in order of execution;
    shapes are as found."""
    routing: Mapping[int, DumpRouting] | None
    """By layer index; None when no layer's choices are there."""
    meta: Mapping[str, str]
    """The file's ``__metadata__``, unchecked."""


def read_dump(path: str | Path, *, finite: bool = True) -> Dump:
    """The dump in a file.

    finite: refuse NaN and infinities. Whoever judges the values passes False: the first value
        that is no number is then a finding and not bad input.

    Raises DumpError for what can be compared with nothing: no file, no safetensors file, no
    tokens or positions, no trace point, a name that is none, a wrong type, an empty tensor, or
    a value that is not finite (the first in order of execution).
    """
    path = Path(path)
    file = open_safetensors(path, DumpError)
    for name in REQUIRED:
        _require_integers(file, path, name)
    tokens, positions = file.tensor("tokens"), file.tensor("positions")
    if len(tokens) != len(positions):
        raise DumpError(
            "one position a token", file=path, tensor="positions", expected=len(tokens),
            found=len(positions),
        )  # fmt: skip
    names = [name for name in file if name not in REQUIRED]
    for name in names:
        _require_known(path, name)
    if not names:
        raise DumpError("holds no trace point, so nothing can be compared", file=path)
    names.sort(key=execution_order)
    for name in names:
        _check_type(file, path, name)
    for name in names if finite else ():
        _check_finite(file, path, name)
    return Dump(
        tokens=tokens,
        positions=positions,
        points={name: file.tensor(name) for name in names if ".topk_" not in name},
        routing=_routing(file, path, names),
        meta=dict(file.metadata),
    )


def is_trace_point(name: str) -> bool:
    """Whether some Laguna, of any number of layers, has a trace point of this name."""
    match = _LAYER.fullmatch(name)
    return name in _WHOLE if match is None else (match[2] or "") in _IN_LAYER


def execution_order(name: str) -> tuple[int, int]:
    """A key that sorts trace points in order of execution."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return (-1 if name == _WHOLE[0] else 1 << 62, _WHOLE.index(name))
    return int(match[1]), _IN_LAYER.index(match[2] or "")


def _require_integers(file: SafetensorsFile, path: Path, name: str) -> None:
    if name not in file:
        raise DumpError("missing", file=path, tensor=name, expected="int64 [T]")
    entry = file.entries[name]
    if entry.dtype != "I64" or len(entry.shape) != 1 or entry.shape[0] == 0:
        raise DumpError(
            "wrong type or shape", file=path, tensor=name, expected="I64 [T], T at least 1",
            found=f"{entry.dtype} {list(entry.shape)}",
        )  # fmt: skip


def _require_known(path: Path, name: str) -> None:
    if is_trace_point(name):
        return
    match = re.search(r"layers\.(\d+)", name)
    at = f"model.layers.{int(match[1]) if match else 0}"
    known = [*REQUIRED, *_WHOLE, *(f"{at}.{point}".rstrip(".") for point in _IN_LAYER)]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    raise DumpError(
        "no trace point has this name", file=path, tensor=name,
        expected=f"such as {nearest[0]} (the nearest)",
    )  # fmt: skip


def _check_type(file: SafetensorsFile, path: Path, name: str) -> None:
    entry = file.entries[name]
    allowed = INTEGERS if name.endswith(".topk_ids") else FLOATS
    if entry.dtype not in allowed:
        raise DumpError(
            "wrong type", file=path, tensor=name, expected=" or ".join(allowed), found=entry.dtype
        )
    if not entry.shape or not entry.nbytes:
        raise DumpError(
            "empty", file=path, tensor=name, expected="[T, ...]", found=list(entry.shape)
        )


def _check_finite(file: SafetensorsFile, path: Path, name: str) -> None:
    entry = file.entries[name]
    if entry.dtype in FLOATS:
        place = _first_not_finite(file.tensor(name), entry.dtype)
        if place is not None:
            token, *rest = (int(i) for i in np.unravel_index(place, entry.shape))
            raise DumpError(
                f"token {token}, channel {', '.join(map(str, rest)) or '-'} is not finite",
                file=path, tensor=name, found=str(file.tensor(name).reshape(-1)[place]),
            )  # fmt: skip


def _first_not_finite(array: Array, dtype: str) -> int | None:
    """Its index among all elements; a block at a time, so that memory stays small."""
    unsigned, exponent = _EXPONENT[dtype]
    flat = array.reshape(-1).view(unsigned)
    bits = flat.dtype.type(exponent)
    step = BLOCK_BYTES // flat.itemsize
    for start in range(0, len(flat), step):
        bad = (flat[start : start + step] & bits) == bits
        if bad.any():
            return start + int(bad.argmax())
    return None


def _routing(file: SafetensorsFile, path: Path, names: list[str]) -> dict[int, DumpRouting] | None:
    found: dict[int, DumpRouting] = {}
    for at in dict.fromkeys(name.rpartition(".")[0] for name in _topk(names)):
        ids, weights = f"{at}.topk_ids", f"{at}.topk_weights"
        if ids not in file:
            raise DumpError("weights of experts that are not named", file=path, tensor=weights,
                            expected=f"{ids} beside it")  # fmt: skip
        layer = int(at.split(".")[2])
        found[layer] = DumpRouting(
            file.tensor(ids), file.tensor(weights) if weights in file else None
        )
    return found or None


def _topk(names: list[str]) -> Iterator[str]:
    return (name for name in names if ".topk_" in name)
