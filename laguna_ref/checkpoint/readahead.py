"""Having parts of a mapped file read before they are touched, and asking what is in memory.

A thread that touches a page that is not in memory waits, and Linux reads not that page but what
lies around it, as much as the device's read-ahead (8 MB on some machines). A routed expert of
XS.2 is 1.5 MB: its neighbours are read for nothing, and each thread waits for one read at a time.
Asked beforehand, the system reads what is needed and nothing else, all of it at once.

Where the system has MADV_WILLNEED. Elsewhere nothing is asked for: pages come when touched.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

STEP = 128 * 1024
"""Linux reads no more at one request than the device's read-ahead: 128 KB unless changed."""


def will_need(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Starts reading these bytes of a mapped file, unless they are in memory; does not wait."""
    advice = getattr(mmap, "MADV_WILLNEED", None)
    if advice is None:
        return
    first = start - start % mmap.PAGESIZE
    for begin in range(first, stop, STEP):
        try:
            mapped.madvise(advice, begin, min(STEP, stop - begin))
        except OSError:  # only advice: not every file system takes it
            return


def in_memory(mapped: NDArray[np.uint8], offsets: Iterable[int]) -> list[bool]:
    """Whether these bytes of a mapped file are in memory; empty where the system does not say.

    Linux tells only who may write to the file; to others everything seems to be there. (A read
    that is told not to wait fails as wanted, but starts reading.)
    """
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError, TypeError):
        return []
    page, first = ctypes.c_ubyte(), mapped.ctypes.data
    found = []
    for offset in offsets:
        place = first + offset - offset % mmap.PAGESIZE
        if mincore(ctypes.c_void_p(place), ctypes.c_size_t(1), ctypes.byref(page)) != 0:
            return []
        found.append(bool(page.value & 1))
    return found
