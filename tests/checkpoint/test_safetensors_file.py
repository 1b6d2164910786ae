"""Our reader and writer of safetensors against the safetensors library, and against lies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from safetensors import SafetensorError

from laguna_ref.checkpoint.safetensors_file import (
    DTYPE_NAMES,
    DTYPES,
    MAX_HEADER_BYTES,
    SafetensorsFile,
)
from laguna_ref.checkpoint.safetensors_writer import TensorSpec, aligned, header_bytes, write_file
from laguna_ref.errors import CheckpointError


def example_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {}
    for name, dtype in DTYPES.items():
        raw = rng.integers(0, 2, (3, 5)) if name == "BOOL" else rng.integers(0, 100, (3, 5))
        tensors[f"t.{name}"] = raw.astype(dtype)
    tensors["scalar"] = np.array(2.5, np.float32)
    tensors["empty"] = np.zeros((0, 4), np.float32)
    return tensors


def specs_of(tensors: dict[str, np.ndarray]) -> list[TensorSpec]:
    return [TensorSpec(name, DTYPE_NAMES[a.dtype], a.shape) for name, a in tensors.items()]


def put(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with any header, honest or not; returns its path."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = (len(text) if length is None else length).to_bytes(8, "little")
    path.write_bytes(prefix + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# Both ways against the library ------------------------------------------------------------


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = example_tensors()
    path = tmp_path / "x.safetensors"
    write_file(path, aligned(specs_of(tensors)), lambda name: tensors[name], {"format": "pt"})
    read = dict(safetensors.deserialize(path.read_bytes()))
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name]["dtype"] == DTYPE_NAMES[array.dtype]
        assert tuple(read[name]["shape"]) == array.shape
        assert bytes(read[name]["data"]) == array.tobytes()


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = example_tensors()
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path, {"a": "b"})
    file = SafetensorsFile(path)
    assert file.metadata == {"a": "b"}
    assert set(file) == set(tensors)
    for name, array in tensors.items():
        view = file.tensor(name)
        assert view.dtype == array.dtype
        assert view.shape == array.shape
        assert view.tobytes() == array.tobytes()
        assert file.entries[name].nbytes == array.nbytes


def test_tensors_are_aligned_read_only_views(tmp_path: Path) -> None:
    tensors = {"a": np.ones(3, np.uint8), "b": np.ones(3, np.float64), "c": np.ones(1, np.int16)}
    path = tmp_path / "x.safetensors"
    write_file(path, aligned(specs_of(tensors)), lambda name: tensors[name])
    file = SafetensorsFile(path)
    for name in tensors:
        view = file.tensor(name)
        assert view.flags.aligned
        assert not view.flags.writeable
        assert not view.flags.owndata
    assert np.shares_memory(file.tensor("a"), file.tensor("a"))


def test_unaligned_tensors_are_read_too(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], [0, 1]), "b": entry("F32", [1], [1, 5])}
    value = np.array([3.5], np.float32)
    path = put(tmp_path / "x.safetensors", header, b"\1" + value.tobytes())
    assert SafetensorsFile(path).tensor("b").tolist() == [3.5]


# Lies in the header -----------------------------------------------------------------------

EIGHT = bytes(8)
HEADER_LIES: dict[str, tuple[Any, bytes, str]] = {
    "not JSON": (b"{nonsense", EIGHT, "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', EIGHT, "not UTF-8"),
    "not an object": (b"[1, 2]", EIGHT, "not a JSON object"),
    "leading space": (b" {}", b"", "not a JSON object"),
    "two objects": (b"{}{}", b"", "not valid JSON"),
    "NaN": (b'{"a": NaN}', b"", "number"),
    "nested for ever": (b'{"a":' + b"[" * 100_000, EIGHT, "not valid JSON"),
    "endless integer": (
        b'{"a": {"dtype": "U8", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}',
        EIGHT,
        "not valid JSON",
    ),
    "name twice": (
        (
            b'{"a": {"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
            b'"a": {"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
        ),
        EIGHT,
        "twice",
    ),
    "field twice": (
        b'{"a": {"dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
        EIGHT,
        "twice",
    ),
    "bad name": ({"a\n\ud800": entry()}, EIGHT, "bad tensor name"),
    "entry is a list": ({"a": [1]}, EIGHT, "bad header entry"),
    "field missing": ({"a": {"dtype": "F32", "shape": [2]}}, EIGHT, "bad header entry"),
    "field unknown": ({"a": {**entry(), "x": 1}}, EIGHT, "bad header entry"),
    "metadata not strings": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "metadata not a table": ({"__metadata__": 7}, b"", "__metadata__"),
    "dtype unknown": ({"a": entry("F4")}, EIGHT, "unknown dtype"),
    "dtype not a string": ({"a": entry(7)}, EIGHT, "unknown dtype"),
    "dtype unhashable": ({"a": entry([])}, EIGHT, "unknown dtype"),
    "shape negative": ({"a": entry(shape=[-2])}, EIGHT, "bad shape"),
    "shape fractional": ({"a": entry(shape=[2.0])}, EIGHT, "bad shape"),
    "shape boolean": ({"a": entry("U8", [True], [0, 1])}, b"1", "bad shape"),
    "shape of many axes": ({"a": entry("U8", [1] * 100, [0, 1])}, b"1", "bad shape"),
    "shape too large": ({"a": entry(shape=[3])}, EIGHT, "disagree"),
    "shape too small": ({"a": entry(shape=[1])}, EIGHT, "disagree"),
    "2^60 elements": ({"a": entry(shape=[2**30, 2**30])}, EIGHT, "disagree"),
    "2^62 elements": ({"a": entry(shape=[2**62])}, EIGHT, "too large"),
    "elements overflow to the right size": ({"a": entry(shape=[2**62, 2**62])}, EIGHT, "too large"),
    "huge beside empty": ({"a": entry(shape=[2**40, 2**40, 0], offsets=[0, 0])}, b"", "too large"),
    "offsets negative": ({"a": entry(offsets=[-8, 0])}, EIGHT, "bad offsets"),
    "offsets fractional": ({"a": entry(offsets=[0, 8.0])}, EIGHT, "bad offsets"),
    "three offsets": ({"a": entry(offsets=[0, 4, 8])}, EIGHT, "bad offsets"),
    "offsets reversed": ({"a": entry(offsets=[8, 0])}, EIGHT, "outside the file"),
    "offsets past the end": ({"a": entry(shape=[4], offsets=[0, 16])}, EIGHT, "outside the file"),
    "offsets past 2^64": ({"a": entry(offsets=[2**65, 2**65 + 8])}, EIGHT, "outside the file"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "overlaps"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, EIGHT, "overlaps"),
    "hole": ({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20), "hole"),
    "hole at the start": ({"a": entry(offsets=[4, 12])}, bytes(12), "hole"),
    "bytes at the end": ({"a": entry()}, bytes(9), "does not end"),
    "data without tensors": ({}, EIGHT, "does not end"),
}


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_lying_headers_are_refused(tmp_path: Path, lie: str) -> None:
    header, data, says = HEADER_LIES[lie]
    path = put(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    line = str(caught.value)
    assert says in line
    assert "x.safetensors" in line
    assert len(line.splitlines()) == 1
    assert len(line) < 1000


STRICTER = ("leading space", "name twice", "field unknown", "shape of many axes")
"""The format's description forbids the first two, but the library lets them pass."""


@pytest.mark.parametrize("lie", [lie for lie in HEADER_LIES if lie not in STRICTER])
def test_the_library_refuses_them_too(tmp_path: Path, lie: str) -> None:
    """So we are no stricter than the format, but for what the module says."""
    header, data, _ = HEADER_LIES[lie]
    path = put(tmp_path / "x.safetensors", header, data)
    with pytest.raises((SafetensorError, UnicodeEncodeError)):
        safetensors.deserialize(path.read_bytes())


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 20, -9, -1])
def test_truncated_files_are_refused(tmp_path: Path, cut: int) -> None:
    whole = put(tmp_path / "whole.safetensors", {"a": entry()}, EIGHT).read_bytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole[:cut])
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        SafetensorsFile(path)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, MAX_HEADER_BYTES + 1])
def test_wrong_header_lengths_are_refused(tmp_path: Path, length: int) -> None:
    path = put(tmp_path / "x.safetensors", {"a": entry()}, EIGHT, length=length)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        SafetensorsFile(path)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafetensorsFile(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(tmp_path)
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)  # a plain open() would wait here for ever
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(pipe)


def test_a_file_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    path = put(tmp_path / "x.safetensors", {"a": entry()}, EIGHT)
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(CheckpointError, match="cut short"):
        file.tensor("a")


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "x.safetensors", {"a": entry()}, EIGHT)
    with pytest.raises(CheckpointError, match="no such tensor"):
        SafetensorsFile(path).tensor("b")


# The writer -------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    specs = [TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (2,))]

    def fetch(name: str) -> np.ndarray:
        if name == "b":
            raise KeyboardInterrupt
        return np.zeros(2, np.float32)

    with pytest.raises(KeyboardInterrupt):
        write_file(path, specs, fetch)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.zeros(2, np.float64)])
def test_arrays_must_be_what_was_announced(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(CheckpointError, match=r"expected F32 \[2\]"):
        write_file(tmp_path / "x", [TensorSpec("a", "F32", (2,))], lambda _: array)
    assert not list(tmp_path.iterdir())


def test_the_header_is_padded_and_names_are_unique() -> None:
    for size in range(1, 9):
        header = header_bytes([TensorSpec("a" * size, "F32", (2,))])
        assert len(header) % 8 == 0
    with pytest.raises(CheckpointError, match="twice"):
        header_bytes([TensorSpec("a", "F32", (2,))] * 2)


def test_non_contiguous_arrays_are_written_in_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_file(tmp_path / "x", [TensorSpec("a", "F32", (3, 2))], lambda _: array)
    assert np.array_equal(SafetensorsFile(tmp_path / "x").tensor("a"), array)
