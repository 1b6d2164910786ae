"""Values of a request: whether they are JSON that can be written into a prompt, and where not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from laguna_ref.errors import InputError

MAX_DEPTH = 64
"""Containers inside containers: far more than a tool's schema has, far less than Python's stack."""


def decode_object(text: str, where: str) -> dict[str, Any]:
    """The object that ``text`` spells; of a key that comes twice the last value counts.

    Raises InputError naming ``where``, for NaN and infinities too, which JSON does not have.
    """

    def constant(name: str) -> Any:
        raise InputError("JSON does not allow this number", key=where, found=name)

    try:
        value = json.loads(text, parse_constant=constant)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"is not valid JSON ({problem})", key=where, found=text) from problem
    if not isinstance(value, dict):
        raise InputError("wrong JSON", key=where, expected="an object", found=kind(value))
    check_value(value, where)
    return value


def check_value(value: Any, where: str, depth: int = 0) -> None:
    """Raises InputError naming the place of what JSON cannot hold, or nests too deep."""
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError("JSON does not allow this number", key=where, found=repr(value))
    elif isinstance(value, (dict, list)):
        if depth == MAX_DEPTH:
            raise InputError("nested too deep", key=where, expected=f"at most {MAX_DEPTH} levels")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            if isinstance(value, dict):
                check_text(name, where)
            check_value(item, where, depth + 1)
    elif not (value is None or isinstance(value, int)):
        raise InputError("not a JSON value", key=where, found=kind(value))


def check_text(text: Any, where: str) -> str:
    """``text`` as given; raises InputError unless it is a string of Unicode characters."""
    if not isinstance(text, str):
        raise InputError("wrong type", key=where, expected="a string", found=kind(text))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise InputError(
            f"text is not Unicode (character {problem.start})",
            key=where,
            found=repr(text[problem.start]),
        ) from problem
    return text


def check_object(value: Any, where: str) -> Mapping[str, Any]:
    """``value`` as given; raises InputError unless it is an object."""
    if not isinstance(value, Mapping):
        raise InputError("wrong type", key=where, expected="an object", found=kind(value))
    return value


def check_list(value: Any, where: str) -> Sequence[Any]:
    """``value`` as given; raises InputError unless it is an array."""
    if not isinstance(value, (list, tuple)):
        raise InputError("wrong type", key=where, expected="an array", found=kind(value))
    return value


def kind(value: Any) -> str:
    """What JSON calls it, or Python where JSON has none."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), type(value).__name__)
