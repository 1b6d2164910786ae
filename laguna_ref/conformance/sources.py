"""Which of the package's modules a result depends on: those that its module imports, and so on."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
PACKAGE = "laguna_ref"


@lru_cache
def sha256_of(module: str) -> str:
    """Hash of the module's source, of all it imports from this package, and of NumPy's version."""
    digest = hashlib.sha256(np.__version__.encode())
    for path in sorted(files_of(module)):
        name = path.relative_to(ROOT).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def files_of(module: str) -> set[Path]:
    """The module's file and those of all modules it imports, inside functions too.

    A package that is only passed through (``laguna_ref`` of ``laguna_ref.model``) is none of them.
    """
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = _file(waiting.pop())
        if path is not None and path not in found:
            found.add(path)
            waiting += _imported(path)
    return found


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if _ours(name.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _ours(node.module):
            members = [f"{node.module}.{name.name}" for name in node.names]
            submodules = [member for member in members if _file(member)]
            yield from submodules
            if len(submodules) < len(members):
                yield node.module


def _ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None
