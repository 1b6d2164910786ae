"""Tables and numbers for stdout, progress bars for stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_FILES = 160
"""Columns of a table that goes to a file or a pipe, where no terminal sets a width."""
LEAST_WIDTH = 120
"""Narrower terminals wrap whole lines of a table rather than each of its cells."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


def print_json(value: dict[str, Any]) -> None:
    """One object on stdout, in ASCII so that no locale can spoil it."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def note(text: str) -> None:
    """One line on stderr."""
    click.echo(text, err=True)


def human(number: float, unit: str = "") -> str:
    """Three significant digits with a decimal prefix.

    >>> human(23_889_923_232, "B"), human(512, "B"), human(562_857_728, "FLOP")
    ('23.9 GB', '512 B', '563 MFLOP')
    """
    value, prefix = float(number), ""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5 or prefix == "T":
            break
        value /= 1000
    if not prefix:
        return f"{number:g} {unit}".rstrip()
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {prefix}{unit}"


def console(*, stderr: bool = False) -> Console:
    """A rich console for stdout (or stderr); wide where it is not a terminal."""
    from rich.console import Console

    result = Console(stderr=stderr, highlight=False)
    if not result.is_terminal and "COLUMNS" not in os.environ:
        result.width = WIDTH_OF_FILES
    return result


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None
) -> None:
    """A table on stdout.

    A column whose name starts with ``>`` is flushed right, with ``~`` it may be folded.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold"
    )
    for name in columns:
        table.add_column(
            Text(name.lstrip("~>")),
            justify="right" if name.startswith(">") else "left",
            no_wrap=not name.startswith("~"),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    screen = console()
    screen.width = max(screen.width, LEAST_WIDTH)
    screen.print(table)


def print_pairs(title: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, title=title, title_justify="left", title_style="bold", show_header=False,
        padding=(0, 2, 0, 1),
    )  # fmt: skip
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    console().print(table)


@contextmanager
def progress(description: str, *, unit: str = "", shown: bool = True) -> Iterator[Progress]:
    """A bar on stderr, where that is a terminal; gives the call that moves it.

    ``unit`` "B" shows amounts and speed as bytes.
    """
    terminal = console(stderr=True)
    if not (shown and terminal.is_terminal):
        yield lambda done, total: None
        return
    from rich import progress as bars

    amounts: list[bars.ProgressColumn] = [bars.MofNCompleteColumn(), bars.TextColumn(unit)]
    if unit == "B":
        amounts = [bars.DownloadColumn(), bars.TransferSpeedColumn()]
    with bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        *amounts,
        bars.TimeRemainingColumn(),
        console=terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
