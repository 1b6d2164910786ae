"""The two ends of a tool call: its head, which may yet turn out to be none, and its JSON."""

from __future__ import annotations

import json

from laguna_ref.chat.tags import CALL


class Head:
    """What follows ``<tool_call>``: blanks, a name on one line, blanks.

    The text is kept as it came until the first ``<arg_key>`` or ``</tool_call>`` says that it is
    a call; what turns out not to be one is content again.
    """

    def __init__(self) -> None:
        self._raw = [CALL]
        self._name: list[str] = []
        self._line_ended = False

    def take(self, piece: str) -> bool:
        """More text; False if this cannot become a call (text after the line of the name)."""
        self._raw.append(piece)
        rest = piece if self._name else piece.lstrip()
        if not self._line_ended:
            line, newline, rest = rest.partition("\n")
            if line:
                self._name.append(line)
            self._line_ended = bool(newline)
        return not rest.strip()

    @property
    def name(self) -> str:
        """The name so far, without the blanks around it."""
        return "".join(self._name).strip()

    @property
    def raw(self) -> str:
        """All of it as it came, ``<tool_call>`` included."""
        return "".join(self._raw)


class Arguments:
    """The fragments of a JSON object that are not values, as ``json.dumps`` writes them."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def lead(self, key: str) -> str:
        """What goes before the value of ``key``."""
        opening = ", " if self._keys else "{"
        self._keys.add(key)
        return f"{opening}{json.dumps(key, ensure_ascii=False)}: "

    def close(self) -> str:
        """What goes after the last value."""
        return "}" if self._keys else "{}"
