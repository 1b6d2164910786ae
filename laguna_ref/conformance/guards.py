"""What must hold before anything is compared: the same prompt, the same model, real numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from laguna_ref.conformance.inputs import DumpLike, GoldenLike
from laguna_ref.conformance.precision import Precision, stated_precision
from laguna_ref.errors import InputError
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array

NO_EFFECT = frozenset(
    {"use_cache", "transformers_version", "torch_dtype", "dtype", "architectures", "_name_or_path",
     "quantization_config", "auto_map"}
)  # fmt: skip
"""Keys of a config that a backend may hold differently: they say how, not what, it computes."""


def positions_of(golden: GoldenLike) -> Array:
    """RoPE positions of a golden's tokens, int64 [T]."""
    given = golden.case.positions
    if given is None:
        return np.arange(len(golden.case.tokens), dtype=np.int64)
    return np.asarray(given, dtype=np.int64)


def other_prompt(golden: GoldenLike, dump: DumpLike) -> str | None:
    """Why the dump is not of the golden's prompt, or None."""
    for what, ours, theirs in (
        ("tokens", np.asarray(golden.case.tokens), np.asarray(dump.tokens)),
        ("positions", positions_of(golden), np.asarray(dump.positions)),
    ):
        if ours.shape != theirs.shape:
            return f"the dump has {theirs.size} {what}, the case {ours.size}"
        if (ours != theirs).any():
            at = int(np.argmax(ours != theirs))
            return f"other {what}: at {at} the dump has {theirs[at]}, the case {ours[at]}"
    return None


def other_config(raw: Mapping[str, Any], dump: DumpLike) -> str | None:
    """The first key of the dump's own config that contradicts the model's, or None."""
    try:
        theirs = stated_config(dump.meta)
    except InputError as problem:
        return f"the dump's config is {problem.message}"
    return None if theirs is None else _contradiction(raw, theirs, "")


def stated_config(meta: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``config`` of a dump's metadata, None without; raises InputError."""
    stated = meta.get("config")
    if stated is None or stated == "":
        return None
    try:
        config = json.loads(stated) if isinstance(stated, str) else stated
    except ValueError as problem:
        raise InputError("not JSON", key="config", found=stated) from problem
    if not isinstance(config, Mapping):
        raise InputError("no object of JSON", key="config", found=stated)
    return config


def stated_k(meta: Mapping[str, Any]) -> int | None:
    """The ``logprobs_k`` of a dump's metadata, None without; raises InputError."""
    stated = meta.get("logprobs_k")
    if stated is None or stated == "":
        return None
    if not str(stated).isdecimal() or int(stated) < 1:
        raise InputError("no number of tokens", key="logprobs_k", expected="1, 2, 3, ...",
                         found=stated)  # fmt: skip
    return int(stated)


def _contradiction(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str) -> str | None:
    """Keys that only one side has say nothing: defaults are written out by some and not others."""
    for key in sorted(set(ours) & set(theirs) - NO_EFFECT):
        mine, other = ours[key], theirs[key]
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            found = _contradiction(mine, other, f"{path}{key}.")
            if found is not None:
                return found
        elif mine != other:
            return f"another config: {path}{key} is {other!r}, the model's is {mine!r}"
    return None


def other_semantics(golden: GoldenLike, model: Laguna) -> str | None:
    """How the oracle given differs from the one that made the golden, or None."""
    made = golden.settings.get("dequant")
    if made is not None and made != model.numerics.dequant:
        return f"the golden was made with dequant {made}, the model has {model.numerics.dequant}"
    layers = golden.settings.get("kv_cache_fp8_layers")
    found = [index for index, stored in enumerate(model.kv_formats) if stored.fp8]
    if layers is not None and list(layers) != found:
        return f"the golden's cache has {len(layers)} FP8 layers, the model's {len(found)}"
    return None


def declared_precision(dump: DumpLike) -> Precision | None:
    """What the dump says its backend computes in; None if it says nothing. Raises InputError."""
    return stated_precision(dump.meta.get("precision"))


def not_finite(points: Mapping[str, Array]) -> tuple[str, int, tuple[int, ...]] | None:
    """The first point, token and place in it that is no number."""
    for name, array in points.items():
        if np.asarray(array).dtype.kind in "iu":
            continue
        bad = ~np.isfinite(np.asarray(array, np.float32))
        if bad.any():
            token, *rest = (int(i) for i in np.argwhere(bad)[0])
            return name, token, tuple(rest)
    return None


def bad_choice(ids: Array, top_k: int, experts: int) -> tuple[int, str] | None:
    """The first token at which ids [T, K] are no choice of experts, and why; None if they are."""
    if ids.shape[1:] != (top_k,):
        return 0, f"has shape {list(ids.shape)}, expected {[len(ids), top_k]}"
    outside = (ids < 0) | (ids >= experts)
    if outside.any():
        token, place = (int(i) for i in np.argwhere(outside)[0])
        named = int(ids[token, place])
        return token, f"names expert {named} at token {token}, expected 0 to {experts - 1}"
    ordered = np.sort(ids, axis=1)
    twice = ordered[:, 1:] == ordered[:, :-1]
    if twice.any():
        token, place = (int(i) for i in np.argwhere(twice)[0])
        return token, f"names expert {int(ordered[token, place])} twice at token {token}"
    return None
