"""Which control text of a rendered prompt the template wrote, and which came from a message.

A template that follows a released layout has its pieces, which know. For any other, the
conversation is rendered once more with stand-ins for the characters that control text is made of
(``<``, ``/``, ``|``, ``〈`` … but no letters): what is control text in that rendering, the template
wrote. This holds as long as the template does not look at those characters; one that does writes
another text, which shows, and then nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laguna_ref.chat.layouts import Piece, split_thinking
from laguna_ref.chat.template import Template
from laguna_ref.errors import TemplateError

FILLER = "\ufdd0"
"""A noncharacter, so no letter of any spelling."""
STAND_INS = range(0xF0000, 0xFFFFE)
"""Private characters; that a message may hold some of them itself does no harm."""

Place = tuple[int, int]
Block = tuple[int, str | None, str | None]
"""From this character on: whose block (None: nobody's), and whose text, "template" or "message"
(None: not known)."""


@dataclass(frozen=True)
class Origin:
    """Of one rendered prompt."""

    template_control: frozenset[Place]
    """Where the template itself wrote control text: beginning and end, in characters."""
    blocks: tuple[Block, ...]


def origin(
    template: Template,
    text: str,
    messages: Sequence[Mapping[str, Any]],
    spellings: Iterable[str],
    **given: Any,
) -> Origin:
    """Of ``text``, which is what ``template`` renders; raises TemplateError if it cannot be told.

    ``given`` is everything else that the template was given.
    """
    control = _any_of(spellings)
    pieces = template.pieces(messages, **given)
    if pieces is None:
        marked = _marked(template, text, messages, spellings, given)
        return Origin(_places(control, marked), ((0, None, None),))
    own = "".join(
        FILLER * len(piece.text) if piece.from_message else piece.text for piece in pieces
    )
    return Origin(_places(control, own), tuple(_blocks(pieces)))


def _blocks(pieces: Iterable[Piece]) -> Iterator[Block]:
    """Without the empty ones, neighbours of one kind together."""
    length, last = 0, None
    for piece in pieces:
        kind = (piece.role, "message" if piece.from_message else "template")
        if piece.text and kind != last:
            yield (length, *kind)
            last = kind
        length += len(piece.text)


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Matches as the tokenizers library does: the leftmost, of those the longest."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _places(control: re.Pattern[str], text: str) -> frozenset[Place]:
    return frozenset(match.span() for match in control.finditer(text))


def _marked(
    template: Template,
    text: str,
    messages: Sequence[Mapping[str, Any]],
    spellings: Iterable[str],
    given: Mapping[str, Any],
) -> str:
    """``text`` with stand-ins in everything that came from a message, a tool or a keyword.

    A template may split thinking from content, as that of XS.2 does; where it does, the same
    split made beforehand renders the same text and leaves the template nothing to look at.
    """
    table = _stand_ins(spellings)
    for shaped in (messages, [_split(message) for message in messages]):
        disguised = [
            {key: value if key == "role" else _disguise(value, table)
             for key, value in message.items()}
            for message in shaped
        ]  # fmt: skip
        keywords = {key: _disguise(value, table) for key, value in given.items()}
        try:
            marked = template.render(disguised, **keywords)
        except TemplateError:
            continue
        if marked.translate(table) == text.translate(table):
            return marked
    raise TemplateError(
        "this template reads control text inside of messages, so what it wrote itself cannot be "
        "told from that",
        expected="a template of a released layout, messages without control text, or the mode "
        "released",
    )


def _stand_ins(spellings: Iterable[str]) -> dict[int, int]:
    """For every character of the spellings but letters, digits, underscores and space."""
    characters = sorted(set(re.sub(r"[\w\s]", "", "".join(spellings))))
    return {ord(character): STAND_INS[index] for index, character in enumerate(characters)}


def _disguise(value: Any, table: Mapping[int, int]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {_disguise(key, table): _disguise(item, table) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_disguise(item, table) for item in value]
    return value


def _split(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with the thinking in its content where a template looks first."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return message
    if "</think>" not in content:
        return message
    thinking, answer = split_thinking(content)
    given = message.get("reasoning") or message.get("reasoning_content") or thinking
    return {**message, "content": answer, "reasoning": given, "reasoning_content": given}
