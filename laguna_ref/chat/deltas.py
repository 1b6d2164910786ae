"""What a parser gives back: pieces as they become certain, and what they join to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class CallDelta:
    """A piece of one tool call.

    The first of a call has its name; the ``arguments`` of all of them join to a JSON object.
    """

    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: thinking, content, or part of a call; only one of them is there."""

    reasoning: str = ""
    content: str = ""
    call: CallDelta | None = None


@dataclass(frozen=True)
class Call:
    """A tool call: ``arguments`` is a JSON object as text, as the OpenAI API has it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """A whole answer. What there was none of is None, as in an OpenAI message."""

    reasoning: str | None
    content: str | None
    calls: tuple[Call, ...]
    problems: tuple[str, ...]


def join(deltas: Iterable[Delta], problems: Iterable[str] = ()) -> Answer:
    """The answer that the pieces make, in the order in which they came."""
    reasoning: list[str] = []
    content: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        reasoning.append(delta.reasoning)
        content.append(delta.content)
        if delta.call is not None:
            if delta.call.name is not None:
                names.append(delta.call.name)
                arguments.append([])
            arguments[delta.call.index].append(delta.call.arguments)
    calls = (Call(name, "".join(parts)) for name, parts in zip(names, arguments, strict=True))
    return Answer(
        "".join(reasoning) or None, "".join(content) or None, tuple(calls), tuple(problems)
    )
