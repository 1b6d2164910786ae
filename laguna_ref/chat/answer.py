"""The model's output, read: thinking, content and tool calls, whole or as it streams.

The text is the output's tokens decoded with control tokens spelled out (``</think>``,
``<tool_call>``), without the stop token. Any split of it into pieces gives the same answer.
The rules stand in ``reasoning.py``, ``tools.py`` and ``values.py``. Nothing is stripped: a client
that sends ``content`` and ``reasoning_content`` back gets the text that the model wrote
rendered again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from laguna_ref.chat.deltas import Answer, Call, CallDelta, Delta, join
from laguna_ref.chat.reasoning import ReasoningParser, thinking_open
from laguna_ref.chat.tags import Problems
from laguna_ref.chat.tools import ToolCallParser

__all__ = [
    "STOP_IDS",
    "Answer",
    "AnswerParser",
    "Call",
    "CallDelta",
    "Delta",
    "join",
    "parse",
    "thinking_open",
]

STOP_IDS = (2, 24)
"""``〈|EOS|〉`` and ``</assistant>``: either ends an answer."""


class AnswerParser:
    """Reads an output as it arrives; gives out each piece as soon as it is certain.

    Held back are only the beginnings of what may be a tag, white space that is content only if
    text follows, a call's head, its keys, and values whose type is not string.
    """

    def __init__(
        self,
        *,
        thinking: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        parse_reasoning: bool = True,
        parse_tools: bool = True,
    ) -> None:
        """``thinking``: whether the prompt ends inside an open ``<think>`` (``thinking_open``).

        ``tools`` of the request give the values their types. What is not parsed is content as it
        stands: without ``parse_reasoning`` also thinking and its tags.
        """
        self._problems = Problems()
        self._reasoning = ReasoningParser(
            thinking=thinking and parse_reasoning, calls=parse_tools, problems=self._problems
        )
        self._tools = ToolCallParser(tools, self._problems) if parse_tools else None

    @property
    def problems(self) -> list[str]:
        """Calls that are malformed or cut short, thinking that was not closed: a line each."""
        return self._problems.lines

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thinking."""
        return self._reasoning.open

    def push(self, text: str) -> list[Delta]:
        """The next piece of the output, of any length."""
        return self._deltas(*self._reasoning.push(text))

    def finish(self) -> list[Delta]:
        """The output has ended: what was held back, and calls closed."""
        deltas = self._deltas(*self._reasoning.finish())
        return deltas if self._tools is None else [*deltas, *self._tools.finish()]

    def _deltas(self, reasoning: str, rest: str) -> list[Delta]:
        deltas = [Delta(reasoning=reasoning)] if reasoning else []
        if rest and self._tools is None:
            deltas.append(Delta(content=rest))
        elif rest and self._tools is not None:
            deltas += self._tools.push(rest)
        return deltas


def parse(
    text: str,
    *,
    thinking: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
    parse_reasoning: bool = True,
    parse_tools: bool = True,
) -> Answer:
    """A whole output; as the pieces of an AnswerParser joined."""
    parser = AnswerParser(
        thinking=thinking,
        tools=tools,
        parse_reasoning=parse_reasoning,
        parse_tools=parse_tools,
    )
    deltas = [*parser.push(text), *parser.finish()]
    return join(deltas, parser.problems)
