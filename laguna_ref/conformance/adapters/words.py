"""Words after a backend's name, ``KIND:WORD,...``: each makes one setting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from laguna_ref.conformance.backend import BackendError


class Spelled(NamedTuple):
    """A setting whose value is the word itself, where the word is spelled like this."""

    setting: str
    pattern: re.Pattern[str]
    example: str
    """What an error says may stand there."""


def settings_of(
    kind: str, argument: str | None, words: Mapping[str, tuple[str, Any]], *spelled: Spelled
) -> dict[str, Any]:
    """What the words of an argument set, by the names of the settings; the last one counts.

    words: the setting that each word makes, and its value. Raises BackendError for a word that
    is neither one of them nor ``spelled``.
    """
    found: dict[str, Any] = {}
    for word in argument.split(",") if argument else ():
        setting = words.get(word) or next(
            ((each.setting, word) for each in spelled if each.pattern.fullmatch(word)), None
        )
        if setting is None:
            *most, last = [*(each.example for each in spelled), *words]
            expected = f"{', '.join(most)} or {last}"
            raise BackendError(f"unknown word after {kind}:", expected=expected, found=word)
        found |= [setting]
    return found
