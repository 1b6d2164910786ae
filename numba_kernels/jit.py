"""Compiling kernels, and keeping the machine code on disk.

Numba's own cache key sees only the file a kernel stands in, not what that file imports: the
folder's name therefore carries a digest of the whole package's source. Where no folder can be
written, kernels are compiled anew in each process; that costs time and is no error.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from numba.core.caching import FunctionCache

HERE = Path(__file__).parent
SMALL_WORK = 200_000
"""Below this (some twenty microseconds) a kernel stays on the calling thread."""


def source_digest() -> str:
    """Of every source file of the package."""
    digest = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """A writable folder for machine code, or None."""
    try:
        folder = _parent() / f"kernels-{source_digest()}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # no such place, or nobody's home
        return None


def _parent() -> Path:
    named, home = os.environ.get("NUMBA_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else (Path(home) if home else Path.home() / ".cache") / "laguna_ref"


_FOLDER = cache_folder()
if _FOLDER is not None:
    numba.config.CACHE_DIR = str(_FOLDER)


class _Cache(FunctionCache):
    """Numba's, for which a full disk or a file cut off by a loss of power is no error."""

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        except Exception:  # whatever reading a damaged file may raise
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        with suppress(OSError):
            super().save_overload(signature, compiled)


def _compiled(function: Any, **options: Any) -> Any:
    dispatcher = numba.njit(function, nogil=True, **options)
    if _FOLDER is not None:
        dispatcher._cache = _Cache(function)
    return dispatcher


def _named(function: Any, suffix: str) -> Any:
    """The same function under another name.

    Numba's cache tells functions apart by name, not by options: under one name the two bodies
    of a kernel would be loaded for each other.
    """
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, None, function.__closure__
    )
    copy.__module__, copy.__doc__ = function.__module__, function.__doc__
    copy.__qualname__ = f"{function.__qualname__}_{suffix}"
    return copy


def single(function: Any) -> Any:
    """Compiles a function that is called from Python and runs on the calling thread."""
    return _compiled(function)


class Kernel:
    """A kernel that is called from Python, compiled twice from one source.

    With little to do it runs on the calling thread: waking the others takes as long as the
    work, and on a busy machine much longer. ``prange`` is then ``range``; the bits are the same.
    """

    def __init__(self, function: Any) -> None:
        self.on_all_threads = _compiled(_named(function, "on_all_threads"), parallel=True)
        self.on_this_thread = _compiled(_named(function, "on_this_thread"))
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: Any, work: int = SMALL_WORK) -> None:
        """Runs it; ``work`` is about the bytes or multiplications there are."""
        body = self.on_this_thread if work < SMALL_WORK else self.on_all_threads
        body(*arguments)


kernel = Kernel
