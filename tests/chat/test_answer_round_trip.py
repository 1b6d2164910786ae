"""An answer that a template has written is read, and written the same once more."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.chat.answer import Answer, parse
from tests.chat.answers import PROPERTIES, STRINGS, TAGS, TOOLS

Message = dict[str, Any]


def _free(text: str) -> bool:
    return not any(tag in text for tag in TAGS)


PROSE = st.text(max_size=12).filter(_free)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
).filter(lambda value: not isinstance(value, str) and _free(json.dumps(value, ensure_ascii=False)))
STRING = st.text(max_size=12) | st.sampled_from(["</tool_call>", "<tool_call>now\n", " 5\n", "\n"])
VALUES = {
    name: STRING.filter(lambda text: "</arg_value>" not in text) if name in STRINGS else JSON
    for name in PROPERTIES
}
CALL = st.builds(
    lambda name, arguments: {"function": {"name": name, "arguments": arguments}},
    st.sampled_from(["shell", "now"]), st.fixed_dictionaries({}, optional=VALUES),
)  # fmt: skip
MESSAGES = st.fixed_dictionaries(
    {"reasoning_content": PROSE, "content": PROSE, "tool_calls": st.lists(CALL, max_size=3)}
)


def written(message: Message, newline: str) -> str:
    """The assistant's turn after ``<think>``: XS.2's layout with newlines, XS-2.1's without."""
    text = message["reasoning_content"], message["content"]
    # XS.2 strips what it puts between newlines, and leaves out an empty content.
    reasoning, content = map(str.strip, text) if newline else text
    out = newline + reasoning + newline + "</think>" + newline
    out += content + newline if content else ""
    for call in message["tool_calls"]:
        out += f"<tool_call>{call['function']['name']}{newline}"
        for key, value in call["function"]["arguments"].items():
            value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            out += f"<arg_key>{key}</arg_key>{newline}<arg_value>{value}</arg_value>{newline}"
        out += "</tool_call>" + newline
    return out


def as_message(answer: Answer) -> Message:
    """As a client sends it back."""
    calls = [
        {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}
        for call in answer.calls
    ]
    return {
        "reasoning_content": answer.reasoning or "",
        "content": answer.content or "",
        "tool_calls": calls,
    }


@given(message=MESSAGES)
def test_xs2_layout(message: Message) -> None:
    text = written(message, "\n")
    answer = parse(text, thinking=True, tools=TOOLS)
    found = as_message(answer)
    assert written(found, "\n") == text
    assert found["reasoning_content"].strip() == message["reasoning_content"].strip()
    assert found["content"].strip() == message["content"].strip()
    assert found["tool_calls"] == message["tool_calls"]
    assert answer.problems == ()


@given(message=MESSAGES)
def test_xs21_layout(message: Message) -> None:
    if message["tool_calls"] and not message["content"].strip():
        message["content"] = ""  # white space alone before a call is not read
    answer = parse(written(message, ""), thinking=True, tools=TOOLS)
    assert as_message(answer) == message
    assert answer.problems == ()
