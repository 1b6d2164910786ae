"""Where a conversation on the command line comes from: a JSON file, stdin, or options."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laguna_ref.errors import InputError


@dataclass(frozen=True)
class Conversation:
    """In the template's shape."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    keywords: dict[str, Any]
    """For the template: ``chat_template_kwargs`` of a request."""


def read_conversation(
    file: str | None,
    user: str | None,
    system: str | None,
    tools_file: Path | None,
    keywords: str | None,
) -> Conversation:
    """What the options come to; raises InputError naming what is wrong where."""
    from laguna_ref.chat.messages import check_messages, check_tools

    if file is None and user is None and system is None:
        raise InputError("give MESSAGES, --user or --system")
    request = {} if file is None else _request(_read_json(file), _name(file))
    messages = request.get("messages", [])
    tools = request.get("tools")
    if tools_file is not None:
        tools = _read_json(str(tools_file))
    given = [
        *([] if system is None else [{"role": "system", "content": system}]),
        *(messages if isinstance(messages, list) else [messages]),
        *([] if user is None else [{"role": "user", "content": user}]),
    ]
    return Conversation(
        check_messages(given),
        check_tools(tools),
        _keywords(request.get("chat_template_kwargs"), keywords),
    )


def _request(value: Any, name: str) -> dict[str, Any]:
    """An array of messages, or an object that has one."""
    if isinstance(value, list):
        return {"messages": value}
    if isinstance(value, dict) and "messages" in value:
        return value
    raise InputError(
        "not a conversation", file=name, expected="an array of messages, or a chat request"
    )


def _keywords(of_request: Any, option: str | None) -> dict[str, Any]:
    """Those of the option come after, and so before, those of the request."""
    from laguna_ref.chat.json_values import check_object, check_value, decode_object
    from laguna_ref.chat.prompt import RESERVED

    found = dict(check_object(of_request or {}, "chat_template_kwargs"))
    check_value(found, "chat_template_kwargs")
    if option is not None:
        found |= decode_object(option, "--chat-template-kwargs")
    for name in sorted(RESERVED & found.keys()):
        raise InputError("not a keyword of templates", key=f"chat_template_kwargs.{name}")
    return found


def _read_json(file: str) -> Any:
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as problem:
        raise InputError(f"is not UTF-8 (byte {problem.start})", file=_name(file)) from problem
    except (ValueError, RecursionError) as problem:
        raise InputError(f"is not valid JSON ({problem})", file=_name(file)) from problem


def _name(file: str) -> str:
    return "stdin" if file == "-" else file
