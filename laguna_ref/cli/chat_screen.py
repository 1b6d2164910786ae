"""A chat on the screen: thinking dimmed, calls in boxes, and nothing that a terminal obeys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from laguna_ref.cli.output import console

if TYPE_CHECKING:
    from laguna_ref.chat.deltas import CallDelta, Delta
    from laguna_ref.chat.session import Turn

THINKING, CONTENT = "thinking", "content"
STYLES = {THINKING: "dim italic", CONTENT: ""}
_CONTROLS = [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_HARMLESS = {code: "\N{REPLACEMENT CHARACTER}" for code in _CONTROLS if chr(code) not in "\n\t"}
"""Escape sequences, and marks that turn the direction of text around."""


class Screen:
    """Answers on stdout as they come; notes, problems and errors on stderr.

    Without a terminal thinking stands in tags and a call on one line.
    """

    def __init__(self) -> None:
        self._out = console()
        self._err = console(stderr=True)
        self._section: str | None = None
        self._blank = True
        self._held = ""
        self._call: tuple[str, list[str]] | None = None

    @staticmethod
    def printable(text: str) -> str:
        """``text`` without control characters other than newlines and tabs."""
        return text.translate(_HARMLESS)

    def note(self, text: str) -> None:
        """Something that is no part of the conversation."""
        self._print(self._err, self.printable(text) + "\n", "dim")

    def error(self, text: str) -> None:
        """What went wrong."""
        self._print(self._err, f"Error: {self.printable(text)}\n", "red")

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Whatever happens in between, an answer that was begun ends its line."""
        try:
            yield
        finally:
            self._end_section()

    def show(self, delta: Delta) -> None:
        """One piece of an answer."""
        if delta.call is not None:
            self._show_call(delta.call)
        else:
            self._show_text(
                THINKING if delta.reasoning else CONTENT, delta.reasoning or delta.content
            )

    def end(self, turn: Turn) -> None:
        """After an answer: why it ended, if not by itself, and what was wrong with it."""
        for problem in turn.answer.problems:
            self._print(self._err, f"{self.printable(problem)}\n", "yellow")
        if turn.finish_reason != "stop":
            reasons = {"length": "the most tokens allowed", "context": "the end of the context"}
            self.note(f"[{reasons.get(turn.finish_reason, turn.finish_reason)}]")

    def _show_text(self, section: str, text: str) -> None:
        """Blank lines around a section are the layout's, not the reader's."""
        if self._section != section:
            self._end_section()
            self._section, self._blank, self._held = section, True, ""
        text = self._held + self.printable(text)
        if self._blank:
            text = text.lstrip("\n") if section == CONTENT else text.lstrip()
        body = text.rstrip()
        self._held = text[len(body) :]
        if body:
            if self._blank and section == THINKING and not self._out.is_terminal:
                body = f"<think>\n{body}"
            self._blank = False
            self._print(self._out, body, STYLES[section])

    def _show_call(self, call: CallDelta) -> None:
        if call.name is not None:
            self._end_section()
            self._call = (call.name, [])
        if self._call is not None:
            self._call[1].append(call.arguments)

    def _end_section(self) -> None:
        if self._section is not None and not self._blank:
            in_tags = self._section == THINKING and not self._out.is_terminal
            self._print(self._out, "\n</think>\n" if in_tags else "\n", "")
        if self._call is not None:
            self._print_call(self._call[0], "".join(self._call[1]))
        self._section, self._call = None, None

    def _print_call(self, name: str, arguments: str) -> None:
        name = self.printable(name)
        if not self._out.is_terminal:
            self._print(self._out, f"<tool_call> {name} {self.printable(arguments)}\n", "")
            return
        from rich.panel import Panel
        from rich.text import Text

        body = Text(self.printable(_shown(arguments)))
        self._out.print(Panel(body, title=Text(f"call: {name}"), title_align="left", expand=False))

    def _print(self, to: Any, text: str, style: str) -> None:
        from rich.text import Text

        to.print(Text(text, style=style), end="", soft_wrap=True)
        to.file.flush()


def _shown(arguments: str) -> str:
    """A line an argument, strings without quotes; of a call that was cut off what there is."""
    try:
        values: dict[str, Any] = json.loads(arguments)
    except ValueError:
        return arguments
    return "\n".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    )
