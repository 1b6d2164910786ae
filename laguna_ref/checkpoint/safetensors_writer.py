"""Writing one safetensors file as a stream: the header first, then one tensor at a time.

The header is computed from names, dtypes and shapes alone, so a file larger than memory can
be written while only one of its tensors exists. The file appears under its name only when it
is complete; an error or an interrupt leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laguna_ref.checkpoint.safetensors_file import DTYPE_NAMES, DTYPES
from laguna_ref.errors import CheckpointError


class TensorSpec(NamedTuple):
    """Name, safetensors dtype (``"BF16"``) and shape of a tensor that is to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor on disk in bytes."""
        return int(np.prod(self.shape, dtype=object)) * DTYPES[self.dtype].itemsize


def aligned(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The specs, widest dtype first and otherwise in their order.

    With the data starting at a multiple of eight, every tensor then starts at a multiple of
    its item size, and so its memory-mapped view is aligned. The safetensors library writes
    in this order too.
    """
    return sorted(specs, key=lambda spec: -DTYPES[spec.dtype].itemsize)


def write_file(
    path: str | Path,
    specs: Sequence[TensorSpec],
    fetch: Callable[[str], NDArray[Any]],
    metadata: dict[str, str] | None = None,
    *,
    durable: bool = False,
) -> None:
    """Write the tensors of ``specs``, in that order, to ``path``.

    ``fetch(name)`` makes the array when its turn comes; its dtype and shape must be those of
    the spec. ``path`` is replaced if it exists, but only by a complete file;
    with ``durable`` even if the power fails.

    Raises CheckpointError when an array is not what its spec says.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            _write_all(file, header_bytes(specs, metadata))
            for spec in specs:
                array = fetch(spec.name)
                found = (DTYPE_NAMES.get(array.dtype), array.shape)
                if found != (spec.dtype, spec.shape):
                    raise CheckpointError(
                        "the array to write is not what its header says",
                        file=path,
                        tensor=spec.name,
                        expected=f"{spec.dtype} {list(spec.shape)}",
                        found=f"{found[0] or array.dtype} {list(found[1])}",
                    )
                if array.nbytes:
                    _write_all(file, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        os.unlink(temporary)
        raise


def header_bytes(specs: Sequence[TensorSpec], metadata: dict[str, str] | None = None) -> bytes:
    """The length prefix and the JSON header, padded with spaces to a multiple of eight."""
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = metadata
    offset = 0
    for spec in specs:
        if spec.name in header:
            raise CheckpointError("tensor to be written twice", tensor=spec.name)
        stop = offset + spec.nbytes
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(file: Any, data: bytes | memoryview) -> None:
    """Write every byte: an unbuffered write may stop short (at 2 GiB on Linux)."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync_folder(folder: Path) -> None:
    """Make the new name itself last, where the system knows how to sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
