"""Lines for a chat: from a terminal with history, from a plain one, or from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import click

from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

HISTORY_FILE = "chat_history"


class Reader(Protocol):
    """Where lines come from."""

    interactive: bool
    """Whether somebody types them."""

    def read(self, prompt: str, *, tool: bool = False) -> str | None:
        """The next line without its end, None after the last; ``tool``: not for the history."""


def reader(commands: Sequence[str]) -> Reader:
    """With history and completion where stdin and stdout are a terminal and the extra is there."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainReader()
    try:
        return PromptReader(commands)
    except ImportError:
        click.echo("pip install 'laguna-ref[chat]' gives the input line a history", err=True)
        return PlainReader()


class PlainReader:
    """Lines of stdin; where somebody types them, after a prompt."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()

    def read(self, prompt: str, *, tool: bool = False) -> str | None:
        """The next line."""
        if self.interactive:
            click.echo(prompt, nl=False, err=True)
            sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as problem:
            raise InputError(f"is not UTF-8 (byte {problem.start})", file="stdin") from problem
        return line.rstrip("\r\n") if line else None


class PromptReader:
    """A line that can be edited, by prompt_toolkit; its history is kept in the user's state."""

    interactive = True

    def __init__(self, commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        file = history_file()
        self._messages: PromptSession[str] = PromptSession(
            history=InMemoryHistory() if file is None else FileHistory(str(file)),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
        )
        self._tools: PromptSession[str] = PromptSession(history=InMemoryHistory())

    def read(self, prompt: str, *, tool: bool = False) -> str | None:
        """The next line; pasted text may have several."""
        try:
            return (self._tools if tool else self._messages).prompt(prompt)
        except EOFError:
            return None


def history_file() -> Path | None:
    """In the user's folder for state, made for the user alone; None where it cannot be written."""
    from platformdirs import user_state_path

    folder = user_state_path("laguna_ref", appauthor=False)
    file = folder / HISTORY_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        with file.open("ab"):
            return file
    except OSError as problem:
        click.echo(f"no history: {file}: {problem.strerror}", err=True)
        return None
