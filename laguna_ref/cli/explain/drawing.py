"""Tables, bars and sparklines that fit 80 columns; plain text where there is no terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.forward import require_suffix
from laguna_ref.cli.output import console, note
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from rich.text import Text

    from laguna_ref.cli.prompts import GivenPrompt
    from laguna_ref.config import LayerSpec

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
SHADES = " ·░▒▓█"
PLAIN_SHADES = " .:+#@"
SHOWN_LAYERS = 16
"""Deeper models show so many layers, spread evenly, unless --layers says which."""

PLOT_OPTION = click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw it to FILE.png or FILE.svg, readable on light and dark pages (needs the report "
    "extra).",
)
LAYERS_OPTION = click.option(
    "--layers",
    metavar="LAYERS",
    help="Layers to print: 3, 0-7 or 0,4,8.  [default: up to 16, spread over the depth; --json "
    "and --plot have all]",
)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str) -> None:
    """A table on stdout, as wide as its cells; a column whose name starts with ``>`` is flushed
    right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        justify: Any = "right" if name.startswith(">") else "left"
        result.add_column(Text(name.lstrip(">")), justify=justify, no_wrap=True, overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    screen = console()
    # Cells are made to fit; a narrower terminal wraps whole lines.
    screen.width = max(screen.width, 80)
    screen.print(Text(title, style="bold"))
    screen.print(result)


def say(text: str) -> None:
    """A line, or lines, below a table."""
    click.echo(text)


def unicode_out() -> bool:
    """Whether stdout can show block characters."""
    return not console().options.ascii_only


def bar(share: float, width: int, style: str = "cyan") -> Text:
    """A bar of ``width`` cells, full at a share of 1."""
    from rich.text import Text

    share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 1.0
    if not unicode_out():
        return Text(("#" * round(share * width)).ljust(width))
    whole, part = divmod(round(share * width * 8), 8)
    cells = "█" * whole + (EIGHTHS[part] if part else "")
    return Text(cells.ljust(width), style=style)


def bar_and(share: float, width: int, number: str, digits: int = 5) -> Text:
    """A bar with a number behind it."""
    return bar(share, width).append(f" {number:>{digits}}", style="default")


def spark(values: Iterable[float], width: int = 16) -> str:
    """One character a value, the greatest full; more than ``width`` are averaged in stretches."""
    numbers = [float(value) for value in values]
    if len(numbers) > width:
        edges = [round(i * len(numbers) / width) for i in range(width + 1)]
        numbers = [sum(numbers[a:b]) / (b - a) for a, b in pairwise(edges)]
    greatest = max(numbers, default=0.0)
    if not unicode_out():
        return " ".join(f"{9 * x / greatest if greatest > 0 else 0:.0f}" for x in numbers)
    return "".join(
        LEVELS[min(7, int(8 * x / greatest))] if greatest > 0 else LEVELS[0] for x in numbers
    )


def shades(row: Iterable[float], scale: float) -> str:
    """One character a value: a row of a heat map."""
    marks = SHADES if unicode_out() else PLAIN_SHADES
    top = len(marks) - 1
    return "".join(
        marks[min(top, math.ceil(top * x / scale))] if scale > 0 else marks[0] for x in row
    )


def number(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, without an exponent while that is short."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    magnitude = math.floor(math.log10(abs(value)))
    if -4 <= magnitude < digits + 2:
        return f"{value:.{max(0, digits - 1 - magnitude)}f}"
    return f"{value:.{digits - 1}e}"


def percent(share: float) -> str:
    """``12%``; ``<1%`` for a little."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def named(asked: GivenPrompt, token: int, width: int = 14) -> str:
    """A token's text, quoted and cut to a width; its id where there is no tokenizer."""
    text = asked.quoted(token) or str(token)
    return text if len(text) <= width else text[: width - 1] + "…"


def kind(layer: LayerSpec) -> str:
    """``full`` or ``sliding``."""
    return layer.attention.removesuffix("_attention")


def shown_layers(layers: Sequence[int], wanted: str | None) -> list[int]:
    """Which of ``layers`` to print; raises InputError for what is no list of some of them."""
    if wanted is None:
        if len(layers) <= SHOWN_LAYERS:
            return list(layers)
        last = len(layers) - 1
        return [layers[round(i * last / (SHOWN_LAYERS - 1))] for i in range(SHOWN_LAYERS)]
    chosen: set[int] = set()
    for part in wanted.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if match is None:
            raise InputError(
                "not a list of layers", key="--layers", expected="3, 0-7 or 0,4,8", found=wanted
            )
        chosen |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    found = [layer for layer in layers if layer in chosen]
    if not chosen or not chosen <= set(layers):
        raise InputError(
            "no such layers here", key="--layers",
            expected=f"some of {layers[0]} to {layers[-1]}" if layers else "none", found=wanted,
        )  # fmt: skip
    return found


def say_left_out(layers: Sequence[int], shown: Sequence[int]) -> None:
    """A line where not all layers were printed."""
    if len(shown) < len(layers):
        say(f"{len(layers) - len(shown)} layers are not shown; --layers {layers[0]}-{layers[-1]}"
            " shows all")  # fmt: skip


def require_plot(path: Path | None) -> None:
    """Raises InputError, before anything is computed, for a plot that could not be drawn."""
    require_suffix(path, ".png", ".svg")
    if path is not None:
        from laguna_ref.explain.plots import require_matplotlib

        require_matplotlib()


def save_plot(path: Path | None, draw: Callable[[], Any]) -> None:
    """Draws, if that was asked for, and says so on stderr."""
    if path is not None:
        from laguna_ref.explain.plots import save

        save(draw(), path)
        note(f"{path}: written")
