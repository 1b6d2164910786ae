"""From messages to token ids, in one of two modes.

``released`` encodes the rendered prompt whole, as the released engines do: whoever types
``</assistant>`` into a message ends the turn. ``safe`` lets only the template write control
tokens; the same text in a message, a tool or an argument stays text, encoded as its characters by
themselves. All else is one and the same encoding, so that no other token differs between the
modes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from laguna_ref.chat.origin import Origin, Place, origin
from laguna_ref.chat.template import Template
from laguna_ref.chat.tokenizer import Tokenizer
from laguna_ref.errors import InputError, TemplateError

MODES = ("safe", "released")
RESERVED = frozenset(
    {"tokenizer", "template", "messages", "tools", "mode", "add_generation_prompt"}
    | {"self", "text", "spellings"}
)
"""Names that no keyword of a template may have: ``encode``, and what it calls, have them."""


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of one kind: ``prompt.ids[start:end]``."""

    start: int
    end: int
    text: str
    role: str | None
    """Whose block: system, user, assistant, tool; None before the first, or where not known."""
    source: str | None
    """Who wrote it: "template", "message", or None where not known.

    A token that holds characters of two belongs to that of the first.
    """
    kind: str
    """"control" (one control token), "spelled" (control text that stayed text) or "text"."""


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation; the spans join to its text and its ids."""

    text: str
    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def encode(
    tokenizer: Tokenizer,
    template: Template,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    mode: str = "safe",
    add_generation_prompt: bool = True,
    **kwargs: Any,
) -> Prompt:
    """The prompt of a conversation; nothing is added to what the template writes.

    ``messages`` and ``tools`` as ``laguna_ref.chat.messages`` gives them. Raises InputError for
    an unknown mode, TemplateError for what the template refuses, and in mode "safe" for a
    template of which it cannot be told what it wrote itself.
    """
    if mode not in MODES:
        raise InputError("no such mode", key="mode", expected=" or ".join(MODES), found=repr(mode))
    given = {**kwargs, "tools": tools, "add_generation_prompt": add_generation_prompt}
    text = template.render(messages, **given)
    ids, places = tokenizer.encode_with_places(text)
    control = {i: places[i] for i, number in enumerate(ids) if number in tokenizer.control}
    known = _origin(tokenizer, template, text, messages, given, mode)
    spelled = {}
    if mode == "safe":
        spelled = {
            index: tokenizer.encode_plain(text[start:end])
            for index, (start, end) in _not_the_templates(control, known, text).items()
        }
    return _prompt(text, ids, [start for start, _ in places], control, spelled, known)


def _origin(
    tokenizer: Tokenizer,
    template: Template,
    text: str,
    messages: Sequence[Mapping[str, Any]],
    given: Mapping[str, Any],
    mode: str,
) -> Origin:
    """In mode "released" only roles depend on it, so there it may be unknown."""
    try:
        return origin(template, text, messages, tokenizer.control.values(), **given)
    except TemplateError:
        if mode == "safe":
            raise
        return Origin(frozenset(), ((0, None, None),))


def _not_the_templates(control: Mapping[int, Place], known: Origin, text: str) -> dict[int, Place]:
    """The control tokens, by index, that the template did not write."""
    lost = known.template_control - set(control.values())
    if lost:
        start, end = min(lost)
        raise TemplateError(
            "text of a message runs into the template's control text", found=repr(text[start:end])
        )
    return {index: place for index, place in control.items() if place not in known.template_control}


def _prompt(
    text: str,
    ids: Sequence[int],
    starts: Sequence[int],
    control: Mapping[int, Place],
    spelled: Mapping[int, Sequence[int]],
    known: Origin,
) -> Prompt:
    """Cuts the tokens where a block begins, and around every control token."""
    cuts = {bisect_left(starts, first) for first, _, _ in known.blocks} | {0, len(ids)}
    cuts |= {cut for index in control for cut in (index, index + 1)}
    firsts = [first for first, _, _ in known.blocks]
    spans: list[Span] = []
    joined: list[int] = []
    for index, after in pairwise(sorted(cuts)):
        _, role, source = known.blocks[bisect_right(firsts, starts[index]) - 1]
        kind = "spelled" if index in spelled else "control" if index in control else "text"
        if source is None and kind != "text":
            source = _source(kind, control[index], known)
        begin = len(joined)
        joined += spelled.get(index, ids[index:after])
        end_of_text = starts[after] if after < len(ids) else len(text)
        spans.append(
            Span(begin, len(joined), text[starts[index] : end_of_text], role, source, kind)
        )
    return Prompt(text, tuple(joined), tuple(spans))


def _source(kind: str, place: Place, known: Origin) -> str | None:
    """Of a control token in a prompt of which nothing else is known."""
    if kind == "spelled":
        return "message"
    return "template" if place in known.template_control else None
