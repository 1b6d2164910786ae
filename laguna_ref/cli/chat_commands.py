"""What can be typed in a chat besides messages: ``/think on`` and its like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.chat.session import Session


def run_command(line: str, session: Session) -> str:
    """Does what ``line`` says; gives what there is to say of it. Raises InputError."""
    name, _, rest = line.strip().partition(" ")
    if name not in _COMMANDS:
        raise InputError("no such command", expected="one of /help", found=name)
    return _COMMANDS[name][0](rest.strip(), session)


def read_tools(file: str) -> list[dict[str, Any]]:
    """Tools from a JSON file: a list of them, or one alone; raises InputError."""
    from laguna_ref.chat.messages import check_tools

    try:
        tools = json.loads(Path(file).read_text("utf-8"))
    except OSError as problem:
        raise InputError(f"cannot be read ({problem.strerror})", file=file) from problem
    except (ValueError, RecursionError) as problem:
        raise InputError(f"is not JSON in UTF-8 ({problem})", file=file) from problem
    try:
        return check_tools([tools] if isinstance(tools, dict) else tools) or []
    except InputError as problem:
        raise InputError(
            problem.message, file=file, key=problem.key, expected=problem.expected,
            found=problem.found,
        ) from problem  # fmt: skip


def _help(_: str, __: Session) -> str:
    width = max(map(len, _USAGE))
    return "\n".join(f"{usage:{width}}  {text}" for usage, text in _USAGE.items())


def _think(word: str, session: Session) -> str:
    if word:
        if word not in ("on", "off"):
            raise InputError("/think", expected="on or off", found=word)
        session.thinking = word == "on"
    return f"thinking is {'on' if session.thinking else 'off'}"


def _tools(file: str, session: Session) -> str:
    if file:
        session.tools = None if file == "off" else read_tools(file)
    names = [tool["function"]["name"] for tool in session.tools or ()]
    return f"tools: {', '.join(names) or 'none'}"


def _system(text: str, session: Session) -> str:
    if text:
        session.system = None if text == "off" else text
    shown = "the model's own" if session.system is None else repr(session.system)
    return f"system message: {shown}"


def _reset(_: str, session: Session) -> str:
    session.reset()
    return "the conversation begins anew"


_COMMANDS: dict[str, tuple[Callable[[str, Session], str], str, str]] = {
    "/think": (_think, "/think on|off", "thinking before answers"),
    "/tools": (_tools, "/tools FILE|off", "a JSON file of tools that the model may call"),
    "/system": (_system, "/system TEXT|off", "the system message; off: the model's own"),
    "/reset": (_reset, "/reset", "forget the conversation; thinking, tools and system stay"),
    "/help": (_help, "/help", "this list"),
}
_USAGE = {usage: text for _, usage, text in _COMMANDS.values()} | {
    "/quit": "end the conversation (or Ctrl-D)",
    "//...": "a message that begins with a slash",
}
NAMES = (*_COMMANDS, "/quit")
