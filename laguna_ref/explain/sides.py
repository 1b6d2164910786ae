"""The two sides of a comparison, spelled in a word or two.

A side is terms joined by commas, each of which changes one thing of the base:

    base                               nothing is changed
    float64, float32, bfloat16         the numerics
    kv=float, kv=fp8, kv=checkpoint    the type of the cache
    skip=0-39, skip=1+5, skip=sliding_window    layers whose cache stays float
    engine=numpy, engine=numba
    dequant=exact, dequant=bf16
    fault:NAME                         a bug of the catalogue (docs/diagnose.md), planted
    fault:NAME=VALUE                   one with a number in it, for instance
                                       fault:rope.attention_factor=1.2
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laguna_ref.engines import ENGINES
from laguna_ref.errors import InputError
from laguna_ref.explain.closest import closest
from laguna_ref.load import KV_CACHE_MODES, load
from laguna_ref.model import Laguna
from laguna_ref.numerics import DEQUANT, NUMERICS

VALUES = {"kv": KV_CACHE_MODES, "engine": ENGINES, "dequant": DEQUANT, "numerics": tuple(NUMERICS)}
KEYWORDS = {"kv": "kv_cache", "engine": "engine", "dequant": "dequant", "numerics": "numerics"}
"""What ``load`` calls each."""
FORMS = "base, float64, float32, bfloat16, kv=…, skip=…, engine=…, dequant=… or fault:NAME"


def side(spec: str, path: str | Path | None = None, **options: Any) -> Laguna:
    """The model that ``spec`` spells; ``path`` and ``options`` are those of ``laguna_ref.load``.

    >>> side("bfloat16,kv=float").numerics.name
    'bfloat16'

    Raises InputError for a term that means nothing, naming what is near it; LagunaError as
    ``load`` does.
    """
    faults = []
    for term in (part.strip() for part in spec.split(",")):
        if term.startswith("fault:"):
            faults.append(term.removeprefix("fault:"))
        else:
            options |= _option(term, spec)
    model = load(path, **options)
    for fault in faults:
        model = planted(model, fault)
    return model


def planted(model: Laguna, fault: str) -> Laguna:
    """The model with a bug of the catalogue, ``NAME`` or ``NAME=VALUE``; raises InputError."""
    from laguna_ref.conformance.faults import CATALOGUE, DIALS

    name, equals, value = fault.partition("=")
    dials = {dial.name: dial for dial in DIALS}
    if not equals:
        if name in CATALOGUE:
            return CATALOGUE[name].plant(model)
        if name in dials:
            expected = f"fault:{name}=VALUE; configured is {dials[name].configured(model)}"
            raise InputError("this fault needs a number", key=f"fault:{name}", expected=expected)
        raise InputError("no such fault", expected=closest(name, [*CATALOGUE, *dials]), found=name)
    if name not in dials:
        raise InputError("no such number to change", expected=closest(name, dials), found=name)
    try:
        number = float(value)
    except ValueError:
        raise InputError("not a number", key=f"fault:{name}", found=value) from None
    return dials[name].plant(model, number)


def _option(term: str, spec: str) -> dict[str, Any]:
    """What one term means to ``load``."""
    if term == "base":
        return {}
    if term in NUMERICS:
        return {"numerics": term}
    key, equals, value = term.partition("=")
    if key == "skip" and value:
        return {"kv_cache_skip_layers": tuple(value.split("+"))}
    if not equals or key not in VALUES:
        raise InputError("no such side", key=spec, expected=FORMS, found=term or "nothing")
    if value not in VALUES[key]:
        raise InputError(f"unknown {key}", key=spec, expected=" or ".join(VALUES[key]), found=value)
    return {KEYWORDS[key]: value}
