"""Outputs of a model, well-formed and not, and a slow parser of them by regular expressions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from laguna_ref.chat.answer import Answer, AnswerParser, join
from laguna_ref.chat.values import to_json

PROPERTIES = {
    "cmd": {"type": "string"},
    "body": {"type": "string", "description": "a file"},
    "timeout": {"type": "integer"},
    "maybe": {"type": ["string", "null"]},
    "any": {},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": PROPERTIES}}}
    for name in ("shell", "now")
]
STRINGS = ("cmd", "body")

TAGS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip

# --- texts and splits -----------------------------------------------------------------------

FRAGMENTS = st.builds(lambda tag, cut: tag[:cut], st.sampled_from(TAGS), st.integers(1, 11))
WORDS = st.sampled_from(
    ["shell", "now", "other tool", "cmd", "timeout", "any", " 5 ", "true", "None", '{"a": [1]}',
     "NaN", "\n", "\n\n", " ", "\r\n", "\u2028", "é", "日", "\U0001f600", '"', "\\", "<", ">", "</"]
)  # fmt: skip
PIECES = st.one_of(st.sampled_from(TAGS), WORDS, FRAGMENTS, st.text(max_size=4))


def _joined(pieces: st.SearchStrategy[str], most: int) -> st.SearchStrategy[str]:
    return st.lists(pieces, max_size=most).map("".join)


NOISE = st.one_of(st.just(""), st.just("\n"), st.just(""), _joined(PIECES, 2))
"""What stands between the parts of a call: mostly what should."""
PAIRS = st.builds(
    lambda key, value, a, b: (
        f"<arg_key>{key}</arg_key>{a}<arg_value>{value}</arg_value>{b}"
    ),
    st.sampled_from([*PROPERTIES, "new", " cmd "]), _joined(WORDS | FRAGMENTS, 3), NOISE, NOISE,
)  # fmt: skip
CALLS = st.builds(
    lambda name, gap, pairs: f"<tool_call>{name}{gap}{''.join(pairs)}</tool_call>",
    st.sampled_from(["shell", "now", " now ", "other tool", ""]), NOISE,
    st.lists(PAIRS, max_size=3),
)  # fmt: skip
LIKELY = st.builds(
    "".join, st.lists(st.one_of(CALLS, CALLS, st.just("</think>"), NOISE, WORDS), max_size=6)
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A likely text with a part cut out, something put in its place, perhaps cut short."""
    text = draw(LIKELY)
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 12)))
    text = text[:start] + draw(NOISE) + text[end:]
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


TEXTS = st.one_of(LIKELY, damaged(), damaged(), _joined(PIECES, 20))

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)
"""Lengths of the pieces of a split, over and over."""


def pieces(text: str, sizes: list[int]) -> Iterator[str]:
    start = number = 0
    while start < len(text):
        size = sizes[number % len(sizes)]
        yield text[start : start + size]
        start, number = start + size, number + 1


def streamed(text: str, sizes: list[int], **options: Any) -> Answer:
    parser = AnswerParser(**options)
    deltas = [delta for piece in pieces(text, sizes) for delta in parser.push(piece)]
    return join([*deltas, *parser.finish()], parser.problems)


# --- the slow twin --------------------------------------------------------------------------

_CALL_TAGS = "|".join(TAGS[2:])
_HEAD = re.compile(r"<tool_call>\s*([^\n<]*[^\n<\s])\s*(?=<arg_key>|</tool_call>)")
_PAIR = re.compile(
    rf"<arg_key>((?:(?!{_CALL_TAGS}).)*)</arg_key>"
    r"(?:(?!<arg_key>|<arg_value>|</?tool_call>).)*"
    r"<arg_value>(.*?)(</arg_value>|\Z)",
    re.DOTALL,
)


def slow_parse(text: str, *, thinking: bool) -> tuple[str | None, str | None, list[Any]]:
    """``(reasoning, content, [(name, arguments)])``, of a whole text with TOOLS.

    The definition in ``laguna_ref/chat/tools.py`` once more, as the expressions of vLLM's
    ``PoolsideV1ToolParser`` with the differences that are named there; it shares the typing of
    values, which has a table of its own.
    """
    reasoning = None
    if thinking:
        reasoning, _, text = text.partition("</think>")
        reasoning = reasoning.replace("<think>", "") or None
    segments, calls, start = [""], [], 0
    while start < len(text):
        head = _HEAD.match(text, start)
        if head is None:
            segments[-1] += text[start]
            start += 1
        else:
            arguments, start = _slow_arguments(text, head.end(), head[1].strip())
            calls.append((head[1].strip(), json.dumps(arguments, ensure_ascii=False)))
            segments.append("")
    content = "".join(part for part in segments if part.strip() or not calls)
    return reasoning, content or None, calls


def _slow_arguments(text: str, start: int, tool: str) -> tuple[dict[str, Any], int]:
    arguments: dict[str, Any] = {}
    while start < len(text) and not text.startswith("<tool_call>", start):
        if text.startswith("</tool_call>", start):
            return arguments, start + len("</tool_call>")
        pair = _PAIR.match(text, start)
        start = start + 1 if pair is None else pair.end()
        if pair is not None:
            key, value, closed = pair[1].strip(), pair[2], pair[3]
            if key in STRINGS and tool in ("shell", "now"):
                arguments.setdefault(key, value)
            elif closed:
                arguments.setdefault(key, json.loads(to_json(value)))
    return arguments, start
