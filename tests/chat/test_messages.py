"""OpenAI-shaped messages and tools: what templates get, and what is refused by name."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.chat.json_values import MAX_DEPTH
from laguna_ref.chat.messages import check_messages, check_tools
from laguna_ref.chat.template import Template
from laguna_ref.errors import InputError
from tests.chat.conversations import HOSTILE, values


def call(arguments: Any, name: Any = "shell") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function}


def assistant(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def test_a_round_trip_as_the_client_sends_it() -> None:
    sent = [
        {"role": "system", "content": "You have a shell."},
        {"role": "user", "content": "Run uname -a", "name": "ann"},
        assistant(call('{"cmd": "uname -a", "timeout": 5}')) | {"reasoning_content": "need shell"},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"stdout": "Darwin"}'},
    ]
    before = copy.deepcopy(sent)
    shaped = check_messages(sent)
    assert sent == before
    assert shaped == [
        {"role": "system", "content": "You have a shell."},
        {"role": "user", "content": "Run uname -a", "name": "ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning": "need shell",
            "reasoning_content": "need shell",
            "tool_calls": [call({"cmd": "uname -a", "timeout": 5})],
        },
        {"role": "tool", "content": '{"stdout": "Darwin"}', "tool_call_id": "call_1"},
    ]
    prompt = Template.builtin("xs2").render(shaped, enable_thinking=True)
    assert "<think>\nneed shell\n</think>\n<tool_call>shell\n<arg_key>cmd</arg_key>\n" in prompt
    assert "<arg_value>5</arg_value>\n</tool_call>\n</assistant>\n" in prompt


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ([], ""),
        ("a", "a"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        (["a", {"type": "input_text", "text": "b"}, {"type": "output_text", "text": "c"}],
         "a\nb\nc"),
        ([{"type": "thinking", "thinking": "t"}, {"type": "refusal", "refusal": "no"}], "t\nno"),
        ([{"type": "text", "text": None}, {"type": "text", "text": ""}], ""),
    ],
)  # fmt: skip
def test_content_becomes_one_text(content: Any, text: str) -> None:
    assert check_messages([{"role": "user", "content": content}])[0]["content"] == text


def test_developer_is_system() -> None:
    assert check_messages([{"role": "developer", "content": "x"}])[0]["role"] == "system"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, None),
        ({"reasoning": None, "reasoning_content": None}, None),
        ({"reasoning_content": "b"}, "b"),
        ({"reasoning": "a"}, "a"),
        ({"reasoning": "a", "reasoning_content": "b"}, "a"),
        ({"reasoning": None, "reasoning_content": "b"}, "b"),
    ],
)
def test_reasoning_has_two_names(given: dict[str, Any], kept: str | None) -> None:
    shaped = check_messages([{"role": "assistant", "content": "x", **given}])[0]
    assert (shaped.get("reasoning"), shaped.get("reasoning_content")) == (kept, kept)
    assert "reasoning" not in check_messages([{"role": "user", "content": "x", **given}])[0]


@pytest.mark.parametrize("arguments", [None, {}, "{}", " {} "])
def test_a_call_without_arguments(arguments: Any) -> None:
    shaped = check_messages([assistant(call(arguments))])
    assert shaped[0]["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("none", [None, []])
def test_no_calls_are_no_key(none: Any) -> None:
    shaped = check_messages([{"role": "assistant", "content": "x", "tool_calls": none}])
    assert shaped == [{"role": "assistant", "content": "x"}]


def nested(depth: int) -> str:
    return '{"a": ' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "is not valid JSON"),
        ("{'cmd': 1}", "is not valid JSON"),
        ('{"cmd": ', "is not valid JSON"),
        ("[1]", "wrong JSON; expected an object; found an array"),
        ('"text"', "found a string"),
        ("null", "found null"),
        ("1", "found a number"),
        ("true", "found a boolean"),
        ('{"a": NaN}', "JSON does not allow this number; found NaN"),
        ('{"a": 1e999}', "JSON does not allow this number; found inf"),
        ('{"a": %s}' % ("9" * 5000), "is not valid JSON"),
        ('{"a": "\\ud800"}', "text is not Unicode"),
        (nested(MAX_DEPTH + 1), "nested too deep; expected at most 64 levels"),
        ("[" * 100_000, "is not valid JSON"),
        ({"a": object()}, "not a JSON value; found object"),
        ({1: "a"}, "expected a string; found a number"),
        ([], "expected an object; found an array"),
    ],
)
def test_arguments_must_be_an_object(arguments: Any, message: str) -> None:
    where = r"^messages\[1\]\.tool_calls\[1\]\.function\.arguments: .*"
    with pytest.raises(InputError, match=where + f"(?:{message})") as caught:
        check_messages([{"role": "user"}, assistant(call("{}"), call(arguments))])
    assert len(str(caught.value)) < 1000


def test_the_deepest_that_is_taken() -> None:
    shaped = check_messages([assistant(call(nested(MAX_DEPTH)))])
    assert nested(MAX_DEPTH - 1) in Template.builtin("xs2").render(shaped)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages: wrong type; expected an array; found null"),
        ({"role": "user"}, "messages: wrong type; expected an array; found an object"),
        (["hello"], r"messages\[0\]: wrong type; expected an object; found a string"),
        ([{}], r"messages\[0\]\.role: unknown role; expected system, .*; found null"),
        ([{"role": "function"}], r"messages\[0\]\.role: .*; found 'function'"),
        ([{"role": ["user"]}], r"messages\[0\]\.role: .*; found an array"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content: .*; found a number"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\]\.content: text is not Unicode"),
        ([{"role": "user", "content": [3]}], r"content\[0\]: wrong type; .*found a number"),
        ([{"role": "user", "content": [{"type": "image_url"}]}],
         r"messages\[0\]\.content\[0\]\.type: not a text part; .*; found 'image_url'"),
        ([{"role": "user", "content": [{"type": {}}]}], r"content\[0\]\.type: .*found an object"),
        ([{"role": "user", "content": ["a", {"type": "text", "text": 3}]}],
         r"messages\[0\]\.content\[1\]\.text: wrong type; expected a string; found a number"),
        ([{"role": "user", "name": 3}], r"messages\[0\]\.name: wrong type"),
        ([{"role": "tool", "tool_call_id": 3}], r"messages\[0\]\.tool_call_id: wrong type"),
        ([{"role": "assistant", "reasoning": 3}], r"messages\[0\]\.reasoning: wrong type"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], r"\.tool_calls: .*found an object"),
        ([assistant("call")], r"tool_calls\[0\]: wrong type"),
        ([assistant({"type": "custom"})], r"tool_calls\[0\]\.type: .*found 'custom'"),
        ([assistant({})], r"tool_calls\[0\]\.function: wrong type; .*found null"),
        ([assistant(call("{}", name=None))], r"function\.name: wrong type; .*found null"),
        ([assistant(call("{}", name=""))], r"function\.name: must not be empty"),
    ],
)  # fmt: skip
def test_what_is_refused(messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_messages(messages)


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


def test_tools_stay_as_they_are() -> None:
    given = [tool(name="f", parameters={"b": 1, "a": [None, 1.5]}, strict=True)]
    assert check_tools(given) == given
    assert list(check_tools(given)[0]["function"]) == ["name", "parameters", "strict"]
    assert check_tools(None) is None
    assert check_tools([]) == []


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({}, "tools: wrong type; expected an array; found an object"),
        (["f"], r"tools\[0\]: wrong type"),
        ([{}], r"tools\[0\]\.type: unknown type of tool; expected function; found None"),
        ([{"type": "function"}], r"tools\[0\]\.function: wrong type"),
        ([tool()], r"tools\[0\]\.function\.name: wrong type"),
        ([tool(name="f", parameters=json.loads(nested(80)))], r"tools\[0\]: nested too deep"),
        ([tool(name="f", description="\ud800")], r"tools\[0\]: text is not Unicode"),
        ([tool(name="f", parameters={"a": float("nan")})], r"tools\[0\]: JSON does not allow"),
    ],
)
def test_what_tools_are_refused(tools: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_tools(tools)


KEYS = st.sampled_from(
    ["role", "content", "type", "text", "name", "tool_calls", "function", "arguments", "reasoning",
     "user", "assistant", "system", "tool"]
)  # fmt: skip


@given(messages=st.lists(st.dictionaries(KEYS, values(st.one_of(KEYS, HOSTILE)), max_size=5)))
def test_anything_is_taken_or_refused(messages: Any) -> None:
    try:
        shaped = check_messages(messages)
    except InputError as problem:
        assert str(problem).startswith("messages")  # noqa: PT017
        return
    Template.builtin("xs2").render(shaped)
    Template.builtin("xs2.1").render(shaped)
    assert check_messages(shaped) == shaped
