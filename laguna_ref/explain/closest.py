"""Names near the one that was given, for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The nearest names, joined by "or"; the first few where none is near.

    Checkpoints have 90,000 tensors of some forty kinds, told apart by their numbers: the kind is
    looked for first, and then the name of that kind with the numbers that were given, if any.
    """
    every = list(dict.fromkeys(known))
    kinds: dict[str, str] = {}
    for one in every:
        kinds.setdefault(_NUMBER.sub("#", one), one)
    numbers = _NUMBER.findall(name)
    there = set(every)
    found = []
    for kind in get_close_matches(_NUMBER.sub("#", name), kinds, count, 0.5):
        numbered = _filled(kind, numbers)
        found.append(numbered if numbered in there else kinds[kind])
    return " or ".join(found or every[:count])


def _filled(kind: str, numbers: list[str]) -> str:
    for number in numbers:
        kind = kind.replace("#", number, 1)
    return kind
