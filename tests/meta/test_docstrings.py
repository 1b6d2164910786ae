"""What a public docstring has to say, and a check that refuses a new one that does not say it.

Public is what the API reference shows: the modules that ``docs/reference/*.md`` name, and in them
what has no underscore. Presence is ruff's matter (rules D1); here it is about content:

- arrays: a signature with an array in it states shapes, ``[T, V]``;
- errors: an error that a function raises itself is named;
- operations (``laguna_ref/ops``, those an engine must have): ``Shapes:``, ``Follows:`` with the
  source of the formula, and ``Rounds at:`` where something is rounded.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from laguna_ref.engines import Engine
from tests.meta.sources import ROOT, tree

REFERENCE = ROOT / "docs" / "reference"
SHAPE = re.compile(r"(?<!\w)\[[^\]\n]+\]|\bshapes?\b|elementwise")
ARRAY = re.compile(r"\b(Array|NDArray|ArrayLike)\b")
LATER: dict[str, str] = {}
"""Known gaps, each with what is missing: budgets are filed under the hash of these files' source,
so their docstrings are mended when budgets are measured anew. An entry that is not true fails."""


@dataclass(frozen=True)
class Public:
    """A function or method, and the class it belongs to."""

    module: str
    name: str
    node: ast.FunctionDef
    owner: ast.ClassDef | None

    @property
    def doc(self) -> str:
        """What its docstring says, and its class's."""
        said = ast.get_docstring(self.node) or ""
        return said + "\n" + ((ast.get_docstring(self.owner) or "") if self.owner else "")

    @property
    def key(self) -> str:
        """``laguna_ref.kv_cache.KVFormat.encode``"""
        return f"{self.module}.{self.name}"


def modules() -> list[str]:
    """Those the reference shows; a package's own functions stand in its ``__init__``."""
    text = "".join(page.read_text("utf-8") for page in sorted(REFERENCE.glob("*.md")))
    found = re.findall(r"^\.\. automodule:: ([\w.]+)$", text, re.MULTILINE)
    functions = re.findall(r"^\.\. autofunction:: ([\w.]+)\.\w+$", text, re.MULTILINE)
    homes = {"laguna_ref": ["laguna_ref.load", "laguna_ref.generate"]}
    return sorted({*found, *(home for name in functions for home in homes.get(name, [name]))})


def file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def public() -> tuple[Public, ...]:
    return tuple(one for module in modules() for one in _in(module, tree(file_of(module)).body))


def _in(
    module: str, body: list[ast.stmt], prefix: str = "", owner: ast.ClassDef | None = None
) -> Iterator[Public]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _in(module, node.body, f"{prefix}{node.name}.", node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield Public(module, prefix + node.name, node, owner)


def takes_arrays(node: ast.FunctionDef) -> bool:
    arguments = [*node.args.args, *node.args.kwonlyargs]
    hints = [each.annotation for each in arguments if each.annotation]
    return any(ARRAY.search(ast.unparse(hint)) for hint in [*hints, *filter(None, [node.returns])])


def errors_of(node: ast.FunctionDef) -> set[str]:
    """Errors that the function itself makes and raises."""
    calls = [each.exc for each in ast.walk(node) if isinstance(each, ast.Raise) and each.exc]
    names = {ast.unparse(each.func) for each in calls if isinstance(each, ast.Call)}
    return {name for name in names if re.fullmatch(r"\w+Error", name)}


def missing(one: Public) -> set[str]:
    """What a docstring should say and does not."""
    found = set()
    if takes_arrays(one.node) and not SHAPE.search(one.doc):
        found.add("shapes")
    found |= {error for error in errors_of(one.node) if error not in one.doc}
    operation = one.module.startswith("laguna_ref.ops.") and hasattr(Engine, one.name)
    if operation:
        found |= {label for label in ("Shapes:", "Follows:") if label not in one.doc}
        if "round_at(" in ast.unparse(one.node) and "Rounds at:" not in one.doc:
            found.add("Rounds at:")
    return found


def test_the_reference_shows_much() -> None:
    assert len(public()) > 200
    assert {"laguna_ref.model", "laguna_ref.ops.attention", "laguna_ref.load"} <= set(modules())


@pytest.mark.parametrize("module", modules())
def test_docstrings_say_what_they_must(module: str) -> None:
    for one in public():
        if one.module == module:
            expected = set(filter(None, LATER.get(one.key, "").split(", ")))
            assert missing(one) == expected, f"{one.key}: its docstring lacks {missing(one)}"


def test_no_known_gap_is_forgotten() -> None:
    assert set(LATER) <= {one.key for one in public()}


def test_a_bad_docstring_is_refused() -> None:
    """The test of the test."""
    source = '''
def scale(x: Array) -> Array:
    """Scales it."""
    raise InputError("no")
'''
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    assert missing(Public("laguna_ref.any", "scale", node, None)) == {"shapes", "InputError"}
    assert "Follows:" in missing(Public("laguna_ref.ops.linear", "linear", node, None))
