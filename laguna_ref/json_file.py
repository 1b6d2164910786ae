"""Reading a JSON object from disk with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from laguna_ref.errors import LagunaError

MAX_JSON_BYTES = 256 * 1024 * 1024
"""Larger than any published index (90 thousand tensors take 9 MB), small enough to parse."""


def read_json(path: Path, error: type[LagunaError]) -> dict[str, Any]:
    """The object in ``path``; ``error`` is raised for anything else, naming the file."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error("JSON file too large", file=path, expected=MAX_JSON_BYTES, found=size)
        text = path.read_bytes().decode("utf-8")
    except OSError as problem:
        raise error(f"cannot be read ({problem.strerror})", file=path) from problem
    except UnicodeDecodeError as problem:
        raise error(f"is not UTF-8 (byte {problem.start})", file=path) from problem
    return parse_json(text, str(path), error)


def parse_json(text: str, file: str, error: type[LagunaError]) -> dict[str, Any]:
    """The object that ``text`` spells; duplicate keys, NaN and infinities are refused."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise error("key appears twice in one JSON object", file=file, key=twice)
        return result

    def constant(name: str) -> Any:
        raise error("JSON does not allow this number", file=file, found=name)

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (json.JSONDecodeError, RecursionError, ValueError) as problem:
        raise error(f"is not valid JSON ({problem})", file=file) from problem
    if not isinstance(value, dict):
        raise error("wrong JSON", file=file, expected="an object", found=type(value).__name__)
    return value
