"""``python:MODULE:FACTORY``: any object of the protocol, made by a function of your own.

FACTORY is called with the checkpoint's folder (a Path), or with nothing where it takes no
argument: such a backend serves the one model it has, so that no model can be drawn for it. The
current folder is importable, as it is for ``python -m``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.asking import of_numbers, one_line
from laguna_ref.conformance.backend import Backend, BackendError, Opener, can
from laguna_ref.numerics import Array

MEMBERS = ("name", "capabilities", "logits")
PROMISED = {
    "trace": ("trace",),
    "chunks": ("prefill", "decode"),
    "batch": ("batch",),
}
"""Members that a capability promises."""
PROMISED_CALLS = {member for members in PROMISED.values() for member in members}


def opener(argument: str | None) -> Opener:
    """Raises BackendError where there is no such module or no such function in it."""
    name, _, attribute = (argument or "").partition(":")
    if not name or not attribute:
        raise BackendError("python: needs two names", expected="python:MODULE:FACTORY",
                           found=f"python:{argument or ''}")  # fmt: skip
    factory = _factory(name, attribute)
    takes_folder = _takes_an_argument(factory)

    def opened(folder: Path) -> Backend:
        try:
            made = factory(folder) if takes_folder else factory()
        except (Exception, SystemExit) as problem:  # whatever the port's own code raises
            raise BackendError(f"the factory failed: {one_line(problem)}",
                               key=f"python:{name}:{attribute}") from problem  # fmt: skip
        backend = CheckedBackend(_checked(made, f"{name}:{attribute}"), folder)
        backend.serves_one_model = not takes_folder
        return backend

    return opened


class CheckedBackend:
    """The object that a factory made; what it returns is looked at before anybody judges it.

    ``serves_one_model``: it takes no folder, so laws cannot draw models for it.
    """

    serves_one_model = False

    def __init__(self, backend: Any, folder: Path) -> None:
        self._backend = backend
        self._vocabulary = LagunaConfig.from_file(folder).vocab_size

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._backend, name)
        return _answered(member) if name in PROMISED_CALLS else member

    @property
    def name(self) -> str:
        """What a report calls it."""
        return str(self._backend.name)

    @property
    def capabilities(self) -> frozenset[str]:
        """Those that it declares."""
        return frozenset(self._backend.capabilities)

    def logits(self, tokens: Sequence[int], **options: Any) -> Array:
        """Its logits; raises BackendError unless they are numbers of shape [T, V]."""
        array = np.asarray(_answered(self._backend.logits)(tokens, **options))
        expected = [len(tokens), self._vocabulary]
        if list(array.shape) != expected:
            raise BackendError(f"{self.name}: logits of the wrong shape", expected=expected,
                               found=list(array.shape))  # fmt: skip
        if array.dtype.kind not in "fiuV":  # V: what ml_dtypes makes of bfloat16
            raise BackendError(f"{self.name}: logits that are no real numbers",
                               expected="floats", found=str(array.dtype))  # fmt: skip
        return array

    def trace(self, tokens: Sequence[int], points: Sequence[str], **options: Any) -> Any:
        """Its trace; raises BackendError unless it maps names to arrays."""
        found = _answered(self._backend.trace)(tokens, points, **options)
        if not isinstance(found, Mapping):
            raise BackendError(f"{self.name}: trace returned the wrong type",
                               expected="a mapping of point to array",
                               found=type(found).__name__)  # fmt: skip
        return {str(point): of_numbers(str(point), array) for point, array in found.items()}


def _answered(member: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but a port that ends the program has failed to answer, and nothing more."""

    def called(*values: Any, **options: Any) -> Any:
        try:
            return member(*values, **options)
        except SystemExit as problem:
            raise BackendError(f"it called sys.exit({problem.code})") from problem

    return called


def _factory(name: str, attribute: str) -> Callable[..., Any]:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name != name.partition(".")[0] and problem.name != name:
            raise BackendError(f"module {name} imports {problem.name}, which is not installed",
                               key=f"python:{name}") from problem  # fmt: skip
        raise BackendError("no such module", key=f"python:{name}",
                           expected="a module of the current folder or one installed",
                           found=name) from problem  # fmt: skip
    except (Exception, SystemExit) as problem:  # whatever the module's own code raises
        raise BackendError(f"module {name} cannot be imported: {one_line(problem)}",
                           key=f"python:{name}") from problem  # fmt: skip
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise BackendError(
            "no such function" if factory is None else "cannot be called",
            key=f"python:{name}:{attribute}", expected=f"one of {', '.join(names) or 'none'}",
            found=attribute,
        )  # fmt: skip
    return factory  # type: ignore[no-any-return]


def _takes_an_argument(factory: Callable[..., Any]) -> bool:
    """Whether it can be given the folder; what cannot be told is given it."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = (
        inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )  # fmt: skip
    return any(parameter.kind in positional for parameter in parameters)


def _checked(made: Any, source: str) -> Any:
    missing = [member for member in MEMBERS if not hasattr(made, member)]
    if not missing:
        missing = [
            member
            for capability, members in PROMISED.items() if can(made, capability)
            for member in members if not hasattr(made, member)
        ]  # fmt: skip
    if missing:
        raise BackendError(
            f"{type(made).__name__} is no backend: {missing[0]} is missing", key=f"python:{source}",
            expected=f"{', '.join(MEMBERS)}, and what its capabilities promise",
        )  # fmt: skip
    return made
