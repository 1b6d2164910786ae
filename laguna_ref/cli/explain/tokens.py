"""A prompt's tokens for the terminal: each above its id, one block a role.

Neighbouring tokens differ in shade; control tokens stand in brackets, with colours also reversed.
What the template wrote is dimmer than what came from messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from laguna_ref.cli.output import console

if TYPE_CHECKING:
    from rich.text import Text

    from laguna_ref.chat.prompt import Prompt, Span
    from laguna_ref.chat.tokenizer import Tokenizer

COLOURS = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
SHADES = ("on grey15", "on grey27")
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥"})
LABEL_WIDTH = 11


@dataclass(frozen=True)
class Cell:
    """One token as it is shown."""

    text: str
    token: int
    span: Span
    ends_line: bool


def print_tokens(prompt: Prompt, tokenizer: Tokenizer) -> None:
    """On stdout, as wide as the terminal."""
    screen = console()
    rows = _rows(list(cells(prompt, tokenizer)), screen.width - LABEL_WIDTH)
    last: str | None = ""
    shade = 0
    for row in rows:
        role = row[0].span.role
        label = (role or "") if role != last else ""
        last = role
        for line in _lines(label, row, shade):
            screen.print(line, no_wrap=True, overflow="ignore", crop=False)
        shade += len(row)


def cells(prompt: Prompt, tokenizer: Tokenizer) -> Iterator[Cell]:
    """Every token; bytes that are part of a character are shown as bytes."""
    for span in prompt.spans:
        for token in prompt.ids[span.start : span.end]:
            data = tokenizer.token_bytes(token)
            try:
                text = data.decode("utf-8")
                shown = "".join(map(_printable, text.translate(VISIBLE)))
            except UnicodeDecodeError:
                text, shown = "", "".join(f"\\x{byte:02x}" for byte in data)
            if span.kind == "control":
                shown = f"⟦{shown}⟧"
            yield Cell(shown, token, span, text.endswith("\n"))


def _printable(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def _rows(shown: list[Cell], width: int) -> Iterator[list[Cell]]:
    """A row ends with a line, with a block, and where the terminal does."""
    row: list[Cell] = []
    used = 0
    for cell in shown:
        needed = _width(cell) + 1
        if row and (used + needed > width or row[-1].span.role != cell.span.role
                    or row[-1].ends_line):  # fmt: skip
            yield row
            row, used = [], 0
        row.append(cell)
        used += needed
    if row:
        yield row


def _width(cell: Cell) -> int:
    from rich.cells import cell_len

    return max(cell_len(cell.text), len(str(cell.token)))


def _lines(label: str, row: list[Cell], shade: int) -> tuple[Text, Text]:
    """The tokens, and their ids below."""
    from rich.cells import cell_len
    from rich.text import Text

    colour = COLOURS.get(row[0].span.role or "", "white")
    texts = Text(label.ljust(LABEL_WIDTH), style=f"bold {colour}")
    ids = Text(" " * LABEL_WIDTH)
    for number, cell in enumerate(row, shade):
        gap = " " * (_width(cell) - cell_len(cell.text))
        texts.append(cell.text, style=f"{_style(cell, colour)} {SHADES[number % 2]}")
        texts.append(gap + " ", style="not bold")
        ids.append(str(cell.token).ljust(_width(cell)) + " ", style="dim")
    texts.rstrip()
    ids.rstrip()
    return texts, ids


def _style(cell: Cell, colour: str) -> str:
    if cell.span.kind == "spelled" or (cell.span.kind, cell.span.source) == ("control", "message"):
        colour = "red"
    if cell.span.kind == "control":
        return f"not dim bold reverse {colour}"
    return f"not bold {colour}" + (" dim" if cell.span.source == "template" else "")
