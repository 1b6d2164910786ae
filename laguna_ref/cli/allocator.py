"""Keeping freed memory for the next array of its size.

The C library gives large arrays back to the system when they are freed; the next one is then made
of pages that the system has to clear one by one, which took a twentieth of a prompt's time. A
program may settle that for itself, a library may not: only the command line asks for it.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, KEPT_BY_OLD_GLIBC = 1 << 30, 32 << 20
"""Bytes; greater arrays, and more than that unused at the end of the heap, are given back."""


def keep_freed_memory() -> None:
    """Where the C library is glibc; elsewhere nothing is done."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    # Without the first, the second would make every array of 128 KB a mapping of its own.
    if mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, KEPT_BY_OLD_GLIBC):
        mallopt(M_TRIM_THRESHOLD, KEPT)
