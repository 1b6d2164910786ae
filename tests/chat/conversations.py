"""Drawn conversations of the template's shape: what a client may send, and what it should not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

DATA = Path(__file__).parents[1] / "data"
ADDED: dict[str, dict[str, Any]] = json.loads((DATA / "added_tokens_xs2.json").read_text("utf-8"))
CONTROL = [entry["content"] for entry in ADDED.values()]

TAGS = [
    "<think>", "</think>", "<assistant>", "</assistant>", "<tool_call>", "</tool_call>",
    "〈|EOS|〉", "〈|", "|〉", "/|〉", "|◊|", "<user>", "</user>", "</system>", "<arg_key>",
    "</arg_value>", "<tool_response>", "\n</assistant>", "</assistant>\n",
]  # fmt: skip
SPLIT = [
    "<",
    "</",
    "assistant>",
    "/assistant>",
    "〈",
    "|",
    "|EOS",
    "|EOS|〉",
    "think>",
    "<thi",
    "nk>",
]
SPACE = ["", " ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2028", "\x1c", "\u3000"]
PLAIN = [
    "Hello",
    "Run uname -a",
    "naïve 日本語 🙂",
    "it's 12",
    "{'a': \"b\"}",
    "\\n\\u003c",
    "\x00",
]
NONCHARACTERS = ["\ufdd0", "\ufdd1", "\ufdef", "\uffff", "\ue000", "\ufdd0</think>", "<\ufdd0"]

WORDS = st.one_of(
    st.sampled_from(PLAIN), st.sampled_from(SPACE), st.text(max_size=6).filter(str.isprintable)
)
HOSTILE_WORDS = st.one_of(
    st.sampled_from(TAGS), st.sampled_from(SPLIT), st.sampled_from(CONTROL),
    st.sampled_from(NONCHARACTERS), WORDS,
)  # fmt: skip

HARMLESS = st.lists(WORDS, max_size=5).map("".join)
HOSTILE = st.lists(HOSTILE_WORDS, max_size=5).map("".join)


def values(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """JSON values, nested."""
    leaves = st.one_of(
        text, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, width=32)
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)
        ),
        max_leaves=6,
    )


def calls(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """A tool call."""
    function = st.fixed_dictionaries(
        {"name": text, "arguments": st.dictionaries(text, values(text), max_size=3)}
    )
    return st.fixed_dictionaries(
        {"type": st.just("function"), "id": st.just("call_0"), "function": function}
    )


def messages(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """One message of any role, also of one that templates do not know."""
    content = st.one_of(text, st.none(), st.just([{"type": "text", "text": "dropped"}]))
    plain = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "tool", "developer"]), "content": content}
    )
    # The released templates refuse a list in a first system message.
    system = st.fixed_dictionaries({"role": st.just("system")}, optional={"content": text})
    reasoning = st.one_of(text, st.none())
    assistant = st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": content},
        optional={
            "reasoning": reasoning,
            "reasoning_content": reasoning,
            "tool_calls": st.one_of(st.none(), st.lists(calls(text), max_size=3)),
        },
    )
    return st.one_of(plain, system, assistant)


def tools(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]] | None]:
    """Tool descriptions, or none."""
    properties = st.dictionaries(text, st.fixed_dictionaries({"type": st.just("string")}, optional={
        "description": text, "enum": st.lists(text, max_size=2),
    }), max_size=2)  # fmt: skip
    function = st.fixed_dictionaries(
        {"name": text, "description": text},
        optional={
            "parameters": st.fixed_dictionaries(
                {"type": st.just("object"), "properties": properties}
            )
        },
    )
    tool = st.fixed_dictionaries({"type": st.just("function"), "function": function})
    return st.one_of(st.none(), st.lists(tool, max_size=2))


def conversations(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Everything that ``Template.render`` takes, by name."""
    return st.fixed_dictionaries(
        {
            "messages": st.lists(messages(text), max_size=5),
            "tools": tools(text),
            "add_generation_prompt": st.booleans(),
        },
        optional={
            "enable_thinking": st.sampled_from([True, False, None]),
            "render_assistant_messages_raw": st.booleans(),
            "unknown_to_templates": st.just(1),
        },
    )
