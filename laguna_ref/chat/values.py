"""Values of a tool call's arguments: text in the model's output, JSON in the call.

The template writes a string as it is and everything else as JSON, so that ``5`` may be a number
or a string; the tool's schema says which. The rules are those of vLLM 0.32.0,
``vllm/tool_parsers/poolside_v1_tool_parser.py`` (``_is_string_type``, ``_deserialize``).
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from laguna_ref.chat.json_values import check_value
from laguna_ref.errors import InputError

LONGEST_LITERAL = 10_000
"""Characters of text that are tried as a Python literal: CPython's compiler is not made for
hostile text, which costs it much memory."""


class Schemas:
    """The parameters of the tools of a request, asked for one argument at a time."""

    def __init__(self, tools: Iterable[Mapping[str, Any]] | None) -> None:
        self._parameters: dict[str, Any] = {}
        for tool in tools or ():
            # A tool of the chat API has its function one level down, one of the responses API
            # is flat. The first tool of a name counts.
            function = _part(tool, "function") or tool
            name = _part(function, "name")
            if isinstance(name, str):
                self._parameters.setdefault(name, _part(function, "parameters"))

    def knows(self, tool: str) -> bool:
        """Whether there is such a tool; without any tools, nothing is known to be unknown."""
        return not self._parameters or tool in self._parameters

    def is_string(self, tool: str, argument: str) -> bool:
        """Whether the type of an argument is exactly ``"string"``.

        It is not where the type is a list such as ``["string", "null"]``, where the schema has
        no type, and for tools or arguments that are unknown.
        """
        properties = _part(self._parameters.get(tool), "properties")
        return bool(_part(_part(properties, argument), "type") == "string")


def to_json(text: str) -> str:
    """JSON of a value whose type is not string.

    White space around it goes; then it is read as JSON, else as a Python literal (``True``,
    ``{'a': 1}``), else it is a string. Unlike in vLLM a value that JSON cannot carry is a string
    too: NaN, infinities (``1e999``), sets, half a surrogate pair, numbers of thousands of digits;
    and so is one nested deeper than a request may be, which could not be sent back.
    """
    text = text.strip()
    for decode in (_from_json, _from_literal):
        try:
            found = json.dumps(decode(text), ensure_ascii=False, allow_nan=False)
            found.encode("utf-8")
            check_value(json.loads(found), "value", depth=1)  # what a next request may hold
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, InputError):
            continue
        return found
    return json.dumps(text, ensure_ascii=False)


def escape(text: str) -> str:
    """The inside of a JSON string; pieces may be escaped one by one and joined."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _part(mapping: Any, key: str) -> Any:
    """``mapping[key]``, or None: a schema comes from the client and may be anything."""
    return mapping.get(key) if isinstance(mapping, Mapping) else None


def _from_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _from_literal(text: str) -> Any:
    if len(text) > LONGEST_LITERAL:
        raise ValueError("too long for a literal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strings such as '\d'
        return ast.literal_eval(text)
