"""Under which settings a golden was computed: every one that could change a bit of it."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from laguna_ref.config import LagunaConfig, LayerSpec
from laguna_ref.model import Laguna

PACKAGES = ("numpy", "numba", "llvmlite", "ml_dtypes")
SAME = (
    "numerics", "dequant", "engine", "kv_cache", "kv_cache_skip_layers", "kv_cache_fp8_layers",
    "ignored_config_keys",
)  # fmt: skip
"""Settings that another run must share to come to the same golden; versions need not."""


def settings_of(
    model: Laguna, kv_cache: str, kv_cache_skip_layers: Iterable[int | str] = ()
) -> dict[str, Any]:
    """As they stand in a golden file, defaults resolved."""
    return {
        "numerics": model.numerics.name,
        "dequant": model.numerics.dequant,
        "engine": engine_name(model),
        "kv_cache": kv_cache,
        "kv_cache_skip_layers": [str(entry) for entry in kv_cache_skip_layers],
        "kv_cache_fp8_layers": [i for i, kv in enumerate(model.kv_formats) if kv.fp8],
        "ignored_config_keys": sorted(key for key, _ in model.config.ignored),
        "versions": versions(),
        "effective_config": effective_config(model.config),
    }


def engine_name(model: Laguna) -> str:
    """``numba`` or ``numpy``; ``replaced`` for an engine some function of which is another's."""
    module = getattr(model.engine, "__name__", "")
    return module.rpartition(".")[2].partition("_")[0] or "replaced"


def versions() -> dict[str, str]:
    """Of this package, Python, and the libraries that compute."""
    from laguna_ref import __version__

    found = {"laguna_ref": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def effective_config(config: LagunaConfig) -> dict[str, Any]:
    """Every key with the value used, JSON; derived ones (RoPE's frequencies aside) a layer each."""
    kept = {
        field.name: _plain(getattr(config, field.name))
        for field in fields(config)
        if field.name not in ("layers", "quantization", "defaults", "unused", "ignored", "raw")
    }
    return kept | {
        "layers": [_layer(layer) for layer in config.layers],
        "defaults": {key: _plain(value) for key, value, _ in config.defaults},
        "unused": dict(config.unused),
        "ignored": {key: _plain(value) for key, value in config.ignored},
    }


def _layer(layer: LayerSpec) -> dict[str, Any]:
    """Experts of one layer share their formats, so they are listed once."""
    formats = {re.sub(r"experts\.\d+\.", "experts.*.", name): str(f) for name, f in layer.formats}
    rest = {
        field.name: _plain(getattr(layer, field.name))
        for field in fields(layer)
        if field.name not in ("rope", "formats")
    }
    return rest | {"rope": _plain(asdict(layer.rope)), "formats": formats}


def _plain(value: Any) -> Any:
    """What JSON can hold: tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
