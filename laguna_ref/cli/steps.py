"""A bar on stderr for work whose steps have names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from laguna_ref.cli.output import console

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@contextmanager
def steps(shown: bool) -> Iterator[Progress]:
    """The bar, where stderr is a terminal and it is to be ``shown``; else nothing."""
    from rich import progress as bars

    terminal = console(stderr=True)
    if not (shown and terminal.is_terminal):
        yield lambda what, done, total: None
        return
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(),
               bars.MofNCompleteColumn(), bars.TimeRemainingColumn())  # fmt: skip
    with bars.Progress(*columns, console=terminal, transient=True) as live:
        task = live.add_task("", total=None)
        yield lambda what, done, total: live.update(
            task, description=what, completed=done, total=total
        )
