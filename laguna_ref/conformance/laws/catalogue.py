"""All laws, in the order they are put."""

from __future__ import annotations

from collections.abc import Sequence

from laguna_ref.conformance.laws import attention, routing, sequence, storage
from laguna_ref.conformance.laws.law import Law
from laguna_ref.errors import InputError

LAWS: tuple[Law, ...] = (*sequence.LAWS, *routing.LAWS, *storage.LAWS, *attention.LAWS)


def by_name(names: Sequence[str] | None) -> tuple[Law, ...]:
    """The laws of these names, all of them for None; raises InputError."""
    if names is None:
        return LAWS
    known = {law.name: law for law in LAWS}
    for name in names:
        if name not in known:
            raise InputError("no such law", expected=", ".join(known), found=name)
    return tuple(known[name] for name in names)
