"""Saying on stderr that kernels are being compiled, and which: the first use takes its time."""

from __future__ import annotations

import sys
import time
from typing import Any

from numba.core import event

from numba_kernels.jit import cache_folder

USUAL = 17
"""Kernels of a first run in the default numerics: a total to show, since none is known before."""


class CompileNotice(event.Listener):  # type: ignore[misc]
    """A line that grows while kernels are compiled; silent when all come from the cache.

    Numba compiles what a kernel calls along with it, so events nest; only outermost ones are
    shown.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._bar: Any = None
        self._started = 0.0
        self._count = 0

    def on_start(self, started: Any) -> None:
        """A compilation begins."""
        self._depth += 1
        if self._depth > 1:
            return
        function = started.data["dispatcher"].py_func
        if not function.__module__.startswith("numba_kernels"):
            return
        if self._bar is None:
            self._open()
        self._count += 1
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._bar.update(0, description=f"compiling kernels, once on this machine: {name}")

    def on_end(self, ended: Any) -> None:
        """A compilation has ended."""
        self._depth -= 1
        if self._depth == 0 and self._bar is not None:
            self._bar.update(0, advance=1, total=max(USUAL, self._count))

    def close(self) -> None:
        """Ends the line with what was done; another may begin later."""
        if self._bar is None:
            return
        self._bar.stop()
        self._bar = None
        kept = "kept for next time" if cache_folder() else "not kept: no folder can be written"
        seconds = time.monotonic() - self._started
        print(f"compiled {self._count} kernels in {seconds:.0f} s, {kept}", file=sys.stderr)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._started, self._count = time.monotonic(), 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f} of about {task.total:.0f}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.add_task("", total=USUAL)
        self._bar.start()


NOTICE = CompileNotice()
event.register("numba:compile", NOTICE)
