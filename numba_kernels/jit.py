"""Compiling kernels, and keeping the machine code on disk.

Numba's own cache key sees only the file a kernel stands in, not what that file imports: the
folder's name therefore carries a digest of the whole package's source. Where no folder can be
written, kernels are compiled anew in each process; that costs time and is no error.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numba

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


def single(function: Any) -> Any:
    """Compiles a function that is called from Python and runs on the calling thread."""
    return numba.njit(function, nogil=True, cache=_FOLDER is not None)


class Kernel:
    """A kernel that is called from Python, compiled twice from one source.

    With little to do it runs on the calling thread: waking the others takes as long as the
    work, and on a busy machine much longer. ``prange`` is then ``range``; the bits are the same.
    """

    def __init__(self, function: Any) -> None:
        self.on_all_threads = numba.njit(
            function, parallel=True, nogil=True, cache=_FOLDER is not None
        )
        self.on_this_thread = single(function)
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: Any, work: int = SMALL_WORK) -> None:
        """Runs it; ``work`` is about the bytes or multiplications there are."""
        body = self.on_this_thread if work < SMALL_WORK else self.on_all_threads
        body(*arguments)


kernel = Kernel
