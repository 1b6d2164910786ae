"""What a backend declares of its arithmetic; the noise it may show follows from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from laguna_ref.errors import InputError

WEIGHTS = ("as judged", "exact", "bf16")
ACTIVATIONS = ("float32", "bfloat16", "int8")
KV = ("as judged", "float32", "bfloat16", "float16")
ACCUMULATE = ("float32", "bfloat16")
OPTIONS = ("fp8_queries",)

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "int8": 2.0**-24}
"""Of the type activations are handed on (and dumped) in. int8 holds only what enters a product."""


@dataclass(frozen=True)
class Precision:
    """The types a backend computes in.

    weights: ``exact`` (integer times scale), ``bf16`` (that product rounded), or ``as judged``:
        the oracle's own choice, so that no difference comes from it.
    activations: what every operation hands on; ``int8`` quantises what enters a product.
    kv: type of a float key/value cache; ``as judged`` keeps the oracle's (its FP8 layers
        included), any other type makes every layer a float one.
    accumulate: type of the partial sums of a product that is cut into parts.
    options: ``fp8_queries``: queries go through float8 too, as some FP8 attention kernels do.
    """

    weights: str = "as judged"
    activations: str = "float32"
    kv: str = "as judged"
    accumulate: str = "float32"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, allowed in (
            ("weights", WEIGHTS),
            ("activations", ACTIVATIONS),
            ("kv", KV),
            ("accumulate", ACCUMULATE),
        ):
            found = getattr(self, what)
            if found not in allowed:
                raise InputError(
                    f"unknown precision of {what}", expected=" or ".join(allowed), found=found
                )
        object.__setattr__(self, "options", tuple(self.options))
        for option in self.options:
            if option not in OPTIONS:
                raise InputError("unknown option", expected=" or ".join(OPTIONS), found=option)

    @property
    def unit_roundoff(self) -> float:
        """Least error that storing a value may bring, relative to it."""
        return UNIT_ROUNDOFF[self.activations]

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self) | {"options": list(self.options)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Precision:
        """The inverse of ``to_json``; raises InputError."""
        unknown = sorted(set(raw) - set(cls.__dataclass_fields__))
        if unknown:
            raise InputError("unknown key of a precision", key=unknown[0], found=raw[unknown[0]])
        return cls(**{**raw, "options": tuple(raw.get("options", ()))})


PRESETS = {
    "float32": Precision(),
    "bfloat16": Precision(activations="bfloat16", kv="bfloat16"),
    "bfloat16+fp8-kv": Precision(activations="bfloat16"),
    "f16-kv": Precision(kv="float16"),
    "int8": Precision(activations="int8"),
}
"""Names for the usual ones. ``bfloat16+fp8-kv`` takes FP8 where the oracle has it; ``f16-kv`` is
llama.cpp's default cache."""


def stated_precision(stated: Any) -> Precision | None:
    """What a backend or a dump states: a name, an object, or that object as JSON; None for nothing.

    Raises InputError.
    """
    if stated is None or stated == "":
        return None
    text = stated
    try:
        if isinstance(stated, str) and stated.lstrip().startswith("{"):
            stated = json.loads(stated)
        if isinstance(stated, str):
            return precision_by_name(stated)
        return Precision.from_json(dict(stated))
    except (TypeError, ValueError) as problem:
        raise InputError(
            "neither a preset nor an object of JSON", key="precision",
            expected="see docs/report-format.md", found=text,
        ) from problem  # fmt: skip


def precision_by_name(name: str) -> Precision:
    """A preset; raises InputError."""
    if name not in PRESETS:
        raise InputError("unknown precision", expected=" or ".join(PRESETS), found=name)
    return PRESETS[name]
