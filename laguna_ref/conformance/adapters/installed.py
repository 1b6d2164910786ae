"""Whether a peer is there, found out without importing it, and what a report says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from laguna_ref.config_keys import UNUSED_KEYS
from laguna_ref.conformance.backend import BackendError


def require(peer: str, modules: Iterable[str], extra: str) -> None:
    """Raises BackendError, which says what to install, unless all modules can be imported."""
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        raise BackendError(
            f"{peer} is not installed", expected=f"pip install 'laguna-ref[{extra}]'",
            found=f"no module {', '.join(absent)}",
        )  # fmt: skip


def versions(*packages: str) -> str:
    """For instance ``transformers 5.23.0, torch 2.13.0``; packages that are absent are left out."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def effective_config(
    raw: Mapping[str, Any], used: Mapping[str, Any], computed: Mapping[str, Any]
) -> dict[str, Any]:
    """What a peer made of a config.json: the keys it reads, with the values it uses.

    ``not read`` lists keys that are in the file and that the peer does not look at; ``as
    computed`` holds what follows from the config and shows best what it was taken for.
    """
    return {
        **used,
        "not read": _not_read(raw, used),
        "as computed": dict(computed),
    }


def _not_read(raw: Mapping[str, Any], used: Mapping[str, Any], path: str = "") -> list[str]:
    names = []
    for key, value in raw.items():
        if not path and key in UNUSED_KEYS:
            continue
        if key not in used:
            names.append(path + key)
        elif isinstance(value, Mapping) and isinstance(used[key], Mapping):
            names += _not_read(value, used[key], f"{path}{key}.")
    return names
