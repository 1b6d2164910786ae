"""Docstrings of this project as reStructuredText.

They are prose with double backticks, and paragraphs whose lines start with a label: ``Shapes:``,
``Dtypes:``, ``Follows:``, ... Such lines become a list of fields, so that they stand one below
the other on a page; stars and bars, which mean something to reStructuredText, become plain.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sphinx.util.inspect import TypeAliasForwardRef

LABELS = (
    "Shapes", "Dtypes", "Units", "Rounds at", "Follows", "Easy to get wrong", "Raises",
    "Attributes", "Source", "Needs",
)  # fmt: skip
EMPHASIS = r"(?<![\w*])\*\w[\w ]*\*(?![\w*])"
MARKED = re.compile(rf"(``.+?``|:\w[\w:]*:`[^`]+`|{EMPHASIS})", re.DOTALL)


def parameters(obj: Any) -> list[str]:
    """Names of what a function takes; docstrings describe them as ``name: ...``."""
    try:
        return [name for name in inspect.signature(obj).parameters if name != "self"]
    except (TypeError, ValueError):
        return []


def as_fields(lines: list[str], names: Iterable[str] = ()) -> Iterator[str]:
    """Labelled lines of a paragraph as fields, their continuations indented."""
    name = "|".join(map(re.escape, names)) or "(?!)"
    label = re.compile(rf"({'|'.join(LABELS)}|(?:{name})(?:, (?:{name}))*): ")
    inside = False
    for line in lines:
        starts = label.match(line)
        if starts:
            if not inside:
                yield ""
            inside = True
            yield f":{starts[1]}: {line[starts.end() :]}"
        elif not line.strip():
            inside = False
            yield line
        else:
            yield f"    {line.strip()}" if inside else line


def plain(text: str) -> str:
    """Stars, bars and trailing underscores mean themselves, but for literals and ``*emphasis*``."""
    parts = MARKED.split(text)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([*|])", r"\\\1", parts[index])
        parts[index] = re.sub(r"(\w)_(?!\w)", r"\1\\_", parts[index])
    return "".join(parts)


def paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines between blank ones, the blank one that ends each included."""
    found: list[str] = []
    for line in lines:
        found.append(line)
        if not line.strip():
            yield found
            found = []
    if found:
        yield found


def process(_app: Any, _what: str, _name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    """The hook of ``autodoc-process-docstring``: changes the lines in place."""
    fields = list(as_fields(lines, parameters(obj)))
    result: list[str] = []
    for paragraph in paragraphs(fields):
        doctest = paragraph[0].startswith(">>>")
        result += paragraph if doctest else plain("\n".join(paragraph)).split("\n")
    lines[:] = result


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    # Inside tuple[...] Sphinx 8.2 shows an alias by its repr; the alias's name is wanted.
    TypeAliasForwardRef.__repr__ = lambda alias: alias.name
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
