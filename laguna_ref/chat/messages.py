"""Messages and tools of the OpenAI API, checked and given the shape that templates read.

Follows vLLM's ``entrypoints/chat_utils.py`` with its content format "string", which is what an
engine makes of a request before the released template sees it: text parts are joined by a newline
(the template itself would drop a list), null content is empty, ``reasoning`` and
``reasoning_content`` are one thing under two names, arguments of calls are decoded.

Where this differs: arguments that are no JSON object are refused (vLLM puts ``{}`` in their
place), so are roles that no released template writes (vLLM lets them vanish), and ``developer``,
OpenAI's later name for it, is ``system`` (as in llama.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from laguna_ref.chat.json_values import (
    check_list,
    check_object,
    check_text,
    check_value,
    decode_object,
    kind,
)
from laguna_ref.errors import InputError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""The role that a template sees, by the role of the request."""
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""The key that holds the text, by the type of the part."""


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages in the template's shape, copied; raises InputError naming what is wrong where.

    Keys that no template reads are left out.
    """
    return [
        _message(check_object(message, f"messages[{index}]"), f"messages[{index}]")
        for index, message in enumerate(check_list(messages, "messages"))
    ]


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """The tools as given, keys in their order; raises InputError naming what is wrong where."""
    if tools is None:
        return None
    for index, tool in enumerate(check_list(tools, "tools")):
        where = f"tools[{index}]"
        check_object(tool, where)
        if tool.get("type") != "function":
            raise InputError(
                "unknown type of tool", key=f"{where}.type", expected="function",
                found=repr(tool.get("type")),
            )  # fmt: skip
        function = check_object(tool.get("function"), f"{where}.function")
        _name(function, f"{where}.function.name")
        check_value(tool, where)
    return list(tools)


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = _role(message.get("role"), f"{where}.role")
    shaped: dict[str, Any] = {
        "role": role,
        "content": _content(message.get("content"), f"{where}.content"),
    }
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            shaped[key] = check_text(message[key], f"{where}.{key}")
    if role == "assistant":
        shaped |= _reasoning(message, where)
        calls = message.get("tool_calls")
        if calls:
            shaped["tool_calls"] = [
                _call(call, f"{where}.tool_calls[{index}]")
                for index, call in enumerate(check_list(calls, f"{where}.tool_calls"))
            ]
    return shaped


def _role(role: Any, where: str) -> str:
    if not isinstance(role, str) or role not in ROLES:
        found = repr(role) if isinstance(role, str) else kind(role)
        raise InputError("unknown role", key=where, expected=", ".join(ROLES), found=found)
    return ROLES[role]


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, (list, tuple)):
        parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
        return "\n".join(part for part in parts if part is not None)
    if not isinstance(content, str):
        raise InputError(
            "wrong type", key=where, expected="a string, null or an array of text parts",
            found=kind(content),
        )  # fmt: skip
    return check_text(content, where)


def _part(part: Any, where: str) -> str | None:
    """The text of a content part; None for one without, which vLLM passes over."""
    if isinstance(part, str):
        return check_text(part, where)
    type_ = check_object(part, where).get("type")
    if not isinstance(type_, str) or type_ not in TEXT_PARTS:
        raise InputError(
            "not a text part", key=f"{where}.type", expected=", ".join(TEXT_PARTS),
            found=repr(type_) if isinstance(type_, str) else kind(type_),
        )  # fmt: skip
    key = TEXT_PARTS[type_]
    return None if part.get(key) is None else check_text(part[key], f"{where}.{key}")


def _reasoning(message: Mapping[str, Any], where: str) -> dict[str, str]:
    """Under both names, ``reasoning`` first; nothing where neither holds a text."""
    given = [
        check_text(message[key], f"{where}.{key}")
        for key in ("reasoning", "reasoning_content")
        if message.get(key) is not None
    ]
    return {"reasoning": given[0], "reasoning_content": given[0]} if given else {}


def _call(call: Any, where: str) -> dict[str, Any]:
    check_object(call, where)
    if call.get("type", "function") != "function":
        raise InputError(
            "unknown type of call", key=f"{where}.type", expected="function",
            found=repr(call["type"]),
        )  # fmt: skip
    function = check_object(call.get("function"), f"{where}.function")
    shaped: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        shaped["id"] = check_text(call["id"], f"{where}.id")
    shaped["function"] = {
        "name": _name(function, f"{where}.function.name"),
        "arguments": _arguments(function.get("arguments"), f"{where}.function.arguments"),
    }
    return shaped


def _name(function: Mapping[str, Any], where: str) -> str:
    name = check_text(function.get("name"), where)
    if not name:
        raise InputError("must not be empty", key=where)
    return name


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    """A JSON string of an object, or the object itself; null and left out are no arguments."""
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        return decode_object(check_text(arguments, where), where)
    check_object(arguments, where)
    check_value(arguments, where)
    return dict(arguments)
