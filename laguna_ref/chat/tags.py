"""Tags in text that arrives in pieces, and the words for what is wrong with it."""

from __future__ import annotations

import re

THINK = "<think>"
THINK_END = "</think>"
CALL = "<tool_call>"
CALL_END = "</tool_call>"
KEY = "<arg_key>"
KEY_END = "</arg_key>"
VALUE = "<arg_value>"
VALUE_END = "</arg_value>"


class Tags:
    """A set of tags to look for. Every tag begins with ``<`` and has no other ``<``."""

    def __init__(self, *tags: str, any_other: bool = False) -> None:
        """With ``any_other``, a ``<`` that begins none of ``tags`` is found too, as ``"<"``."""
        self._tags = tags
        self._pattern = re.compile("|".join([*map(re.escape, tags), *("<" * any_other)]))
        self._longest = max(map(len, tags))

    def find(self, text: str, start: int, *, final: bool) -> tuple[int, str | None]:
        """``(end of the text before the first tag, the tag)``, from ``start`` on.

        Without a tag: the end of what cannot be the beginning of one, and None. If ``final``
        nothing comes after ``text``, so that is all of it.
        """
        found = self._pattern.search(text, start)
        if found is not None:
            waits = found.group() == "<" and not final and self._unfinished(text, found.start())
            return found.start(), None if waits else found.group()
        # As a tag has one `<`, only the last `<` can be the head of an unfinished one.
        head = text.rfind("<", max(start, len(text) - self._longest + 1))
        waits = head >= 0 and not final and self._unfinished(text, head)
        return head if waits else len(text), None

    def _unfinished(self, text: str, head: int) -> bool:
        """Whether ``text`` ends within what may become a tag that begins at ``head``."""
        beginning = text[head : head + self._longest]
        return head + len(beginning) == len(text) and any(
            tag.startswith(beginning) for tag in self._tags
        )


class Excerpt:
    """The beginning of text that arrives in pieces, to be quoted in a message."""

    LIMIT = 60

    def __init__(self) -> None:
        self._text = ""

    def add(self, piece: str) -> None:
        """More text; leading white space and what is beyond the limit are not kept."""
        piece = piece if self._text else piece.lstrip()
        self._text += piece[: self.LIMIT + 1 - len(self._text)]

    @property
    def blank(self) -> bool:
        """Whether there was nothing but white space."""
        return not self._text

    def __str__(self) -> str:
        cut = len(self._text) > self.LIMIT
        return repr(f"{self._text[: self.LIMIT]}…" if cut else self._text.rstrip())


def quote(text: str) -> str:
    """``text`` for a message: its beginning, as a Python string."""
    excerpt = Excerpt()
    excerpt.add(text)
    return str(excerpt)


class Problems:
    """What was wrong, a line each; a text of nothing but mistakes must not fill the memory."""

    MOST = 100

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """One more, unless there are very many."""
        if len(self.lines) < self.MOST:
            self.lines.append(line)
        elif len(self.lines) == self.MOST:
            self.lines.append("and further problems")
