"""Ctrl-C while kernels run: heard at the next token, even where the exception got lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Gives a function to call now and then: it raises KeyboardInterrupt after a Ctrl-C.

    Python raises it at once as well, but the exception may surface in a callback of a C library
    (while Numba loads or compiles a kernel), which has nowhere to pass it on to and drops it.
    """
    heard = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal heard
        heard = True
        raise KeyboardInterrupt

    def check() -> None:
        if heard:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield check
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
