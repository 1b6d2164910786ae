"""Reading one safetensors file without trusting a byte of it.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the
header's length, the header (JSON: tensor name -> dtype, shape, begin and end offset), then
the tensors' bytes, without holes or overlaps. Everything the header claims is checked
against the size of the file before it is believed, so a damaged file costs no more than the
reading of its header. Tensors are views of one memory map: opening copies no weight.

Why not the ``safetensors`` library: it hands out copies or torch tensors, and its errors do
not say which tensor of which file is wrong. What it accepts, this accepts, except
what the format forbids though the library lets it pass (a name given twice, a header that does
not start with a brace), unknown fields in an entry, more than 16 axes, dtypes of which no part
of this package knows the meaning, and unprintable names.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint import readahead
from laguna_ref.errors import CheckpointError
from laguna_ref.json_file import parse_json

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
MAX_RANK = 16  # no Laguna tensor has more than two axes
SMALL = 4096
"""Bytes of a tensor that is asked for by itself: touched unasked, its neighbours come with it."""
MAX_BYTES = 2**62  # below this no offset or stride overflows a signed 64-bit integer

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
DTYPE_NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}

if sys.byteorder != "little":  # safetensors is little-endian, and so are packed weights
    raise ImportError("laguna_ref reads checkpoints on little-endian machines only")


class TensorEntry(NamedTuple):
    """What a header says of one tensor; ``start`` and ``stop`` are offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor on disk in bytes."""
        return self.stop - self.start


class SafetensorsFile:
    """One safetensors file: its entries, its metadata, and views of its tensors.

    Raises CheckpointError when the file cannot be read or its header is wrong.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.entries, self.metadata = read_header(self.path)
        self._map: mmap.mmap | None = None
        self._bytes: NDArray[np.uint8] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of one tensor in the memory map.

        Raises CheckpointError when the file holds no tensor of that name.
        """
        if name not in self.entries:
            raise CheckpointError("no such tensor", file=self.path, tensor=name)
        entry = self.entries[name]
        if entry.nbytes <= SMALL:
            self.will_need(name)
        raw = self._all_bytes()[entry.start : entry.stop]
        if raw.size != entry.nbytes:
            raise CheckpointError(
                "the file was cut short after it was opened",
                file=self.path,
                tensor=name,
                expected=f"{entry.nbytes} bytes",
                found=f"{raw.size} bytes",
            )
        return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def will_need(self, name: str) -> None:
        """Starts reading a tensor from disk, unless it is in memory; does not wait for it."""
        entry = self.entries[name]
        readahead.will_need(self._mapped(), entry.start, entry.stop)

    def in_memory(self, every: int) -> list[bool]:
        """Whether single bytes, ``every`` so many, are in memory; empty where nobody can say."""
        mapped = self._all_bytes()
        return readahead.in_memory(mapped, range(0, len(mapped), every))

    def _all_bytes(self) -> NDArray[np.uint8]:
        if self._bytes is None:
            self._bytes = np.frombuffer(self._mapped(), dtype=np.uint8)
        return self._bytes

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            try:
                with open(self.path, "rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"cannot be mapped: {error}", file=self.path) from None
        return self._map


def read_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read and check the header of ``path``: entries by name, and the metadata.

    Raises CheckpointError naming the file, the tensor and what is wrong with it.
    """
    file_bytes, text = _header_text(path)
    header = _parse(path, text)
    data_start = 8 + len(text)
    data_bytes = file_bytes - data_start

    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(v) is str for v in metadata.values()):
        raise CheckpointError(
            "__metadata__ is not a table of strings", file=path, found=repr(metadata)
        )
    entries = {
        name: _checked_entry(path, name, value, data_start, data_bytes)
        for name, value in header.items()
    }
    _check_layout(path, entries, data_start, file_bytes)
    return entries, metadata


def _header_text(path: Path) -> tuple[int, bytes]:
    """The size of the file, and the bytes of its header."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise CheckpointError("not a regular file", file=path)
        with open(path, "rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(
                    "truncated: too short for a safetensors header",
                    file=path,
                    expected="8 bytes or more",
                    found=f"{file_bytes} bytes",
                )
            length = int.from_bytes(prefix, "little")
            limit = min(MAX_HEADER_BYTES, file_bytes - 8)
            if length > limit:
                raise CheckpointError(
                    "the header's length exceeds the file or the format's limit: truncated, or "
                    "not a safetensors file",
                    file=path,
                    expected=f"at most {limit} bytes",
                    found=f"{length} bytes",
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", file=path) from None
    if len(text) != length:
        raise CheckpointError("the file shrank while it was read", file=path)
    return file_bytes, text


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    """The header's JSON object; duplicate keys, NaN and endless nesting are refused."""
    if not text.startswith(b"{"):
        raise CheckpointError(
            "the header is not a JSON object", file=path, expected="{", found=repr(text[:16])
        )
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the header is not UTF-8: {error}", file=path) from None
    return parse_json(decoded, f"{path} (header)", CheckpointError)


def _checked_entry(
    path: Path, name: str, value: Any, data_start: int, data_bytes: int
) -> TensorEntry:
    """One entry of the header, believed only after it agrees with itself and the file."""

    def wrong(message: str, expected: Any, found: Any) -> CheckpointError:
        return CheckpointError(message, file=path, tensor=name, expected=expected, found=found)

    if not name.isprintable():  # lone surrogates and control characters among others
        raise CheckpointError("bad tensor name in the header", file=path, found=ascii(name))
    if type(value) is not dict or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("bad header entry", "dtype, shape and data_offsets", repr(value))
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise wrong("unknown dtype", ", ".join(DTYPES), repr(dtype))
    if type(shape) is not list or len(shape) > MAX_RANK or not _all_sizes(shape):
        raise wrong("bad shape", f"up to {MAX_RANK} non-negative integers", repr(shape))
    if type(offsets) is not list or len(offsets) != 2 or not _all_sizes(offsets):
        raise wrong("bad offsets", "two non-negative integers", repr(offsets))

    start, stop = offsets
    if not start <= stop <= data_bytes:
        raise wrong("offsets outside the file", f"0 <= begin <= end <= {data_bytes}", offsets)
    itemsize = DTYPES[dtype].itemsize
    if math.prod(size for size in shape if size) * itemsize > MAX_BYTES:
        raise wrong("shape too large to address", f"at most {MAX_BYTES} bytes", shape)
    nbytes = math.prod(shape) * itemsize
    if nbytes != stop - start:
        raise wrong(
            "shape and offsets disagree",
            f"{nbytes} bytes for {dtype} {shape}",
            f"{stop - start} bytes at {offsets}",
        )
    return TensorEntry(dtype, tuple(shape), data_start + start, data_start + stop)


def _all_sizes(values: list[Any]) -> bool:
    # `type is int` and not isinstance: True is an int to Python, not to the format.
    return all(type(value) is int and value >= 0 for value in values)


def _check_layout(
    path: Path, entries: dict[str, TensorEntry], data_start: int, file_bytes: int
) -> None:
    """Tensors must tile the data exactly: no overlap, no hole, no bytes after the last one."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            problem = "overlaps the tensor before it" if entry.start < position else "has a hole"
            raise CheckpointError(
                f"{problem}{'' if entry.start < position else ' before it'}",
                file=path,
                tensor=name,
                expected=f"begin at {position - data_start}",
                found=f"begin at {entry.start - data_start}",
            )
        position = entry.stop
    if position != file_bytes:
        raise CheckpointError(
            "the file does not end with its last tensor",
            file=path,
            expected=f"{position} bytes",
            found=f"{file_bytes} bytes",
        )
