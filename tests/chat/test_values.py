"""Values of arguments: which are strings, and what the others are in JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laguna_ref.chat.messages import check_messages
from laguna_ref.chat.values import LONGEST_LITERAL, Schemas, escape, to_json


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", "5"),
        (" 5\n", "5"),
        ("-0.5", "-0.5"),
        ("1e3", "1000.0"),
        ("true", "true"),
        ("null", "null"),
        ('"a"', '"a"'),
        ('["é", 1]', '["é", 1]'),
        ('{"a":{"b":[]}}', '{"a": {"b": []}}'),
        # Python's literals.
        ("True", "true"),
        ("None", "null"),
        ("{'a': (1, 2)}", '{"a": [1, 2]}'),
        ("'\\d'", '"\\\\d"'),
        ("{1: 2}", '{"1": 2}'),
        ("0x10", "16"),
        # Neither: a string, without the white space around it.
        ("", '""'),
        (" a b ", '"a b"'),
        ("05", '"05"'),
        ("ls -l", '"ls -l"'),
        ("[1", '"[1"'),
        # What JSON cannot carry is a string as well.
        ("NaN", '"NaN"'),
        ("-Infinity", '"-Infinity"'),
        ("[1e999]", '"[1e999]"'),
        ("{1, 2}", '"{1, 2}"'),
        ("1j", '"1j"'),
        ("b'a'", "\"b'a'\""),
        ("...", '"..."'),
        ("{(1, 2): 3}", '"{(1, 2): 3}"'),
        ("{[]: 1}", '"{[]: 1}"'),
        ('"\\ud800"', '"\\"\\\\ud800\\""'),
    ],
)
def test_values_that_are_no_strings(text: str, expected: str) -> None:
    assert to_json(text) == expected


def test_what_is_nested_too_deep_to_come_back_is_a_string() -> None:
    for depth, kept in ((63, True), (64, False)):
        text = "[" * depth + "]" * depth
        assert (json.loads(to_json(text)) == json.loads(text)) == kept
        call = {"function": {"name": "f", "arguments": f'{{"a": {to_json(text)}}}'}}
        check_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])


@pytest.mark.parametrize("unit", ["[", "(", "-", "9", "1+", "{'a':", "not ", "lambda:", "f'{'"])
@pytest.mark.parametrize("length", [3000, LONGEST_LITERAL + 1])
def test_hostile_values_are_strings(unit: str, length: int) -> None:
    text = (unit * length)[:length].strip()
    assert json.loads(to_json(text)) == (int(text) if text == "9" * 3000 else text)


@given(value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_what_the_template_writes_is_read_again(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert to_json(f"\n{text} ") == text


@given(pieces=st.lists(st.text(max_size=5), max_size=5))
def test_strings_may_be_escaped_piece_by_piece(pieces: list[str]) -> None:
    whole = json.dumps("".join(pieces), ensure_ascii=False)
    assert '"' + "".join(map(escape, pieces)) + '"' == whole


def tool(parameters: Any, name: Any = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, True),
        ({"type": "string", "enum": ["a"]}, True),
        ({"type": "String"}, False),
        ({"type": "str"}, False),
        ({"type": ["string", "null"]}, False),
        ({"anyOf": [{"type": "string"}]}, False),
        ({"type": "integer"}, False),
        ({}, False),
        (None, False),
        (True, False),
    ],
)
def test_only_the_type_string_is_a_string(schema: Any, expected: bool) -> None:
    parameters = {"type": "object", "properties": {"a": schema}}
    flat = {"type": "function", "name": "f", "parameters": parameters}
    for tools in ([tool(parameters)], [flat], [tool(parameters), tool(None)]):
        assert Schemas(tools).is_string("f", "a") is expected
        assert not Schemas(tools).is_string("f", "b")
        assert not Schemas(tools).is_string("g", "a")


@pytest.mark.parametrize(
    "tools",
    [
        None,
        [],
        [{}],
        [tool(None)],
        [tool([])],
        [tool({"properties": ["a"]})],
        [tool({"properties": {"a": "string"}})],
        [tool({}, name=["f"])],
        [tool(None), tool({"properties": {"a": {"type": "string"}}})],
    ],
)
def test_schemas_may_be_anything(tools: Any) -> None:
    assert not Schemas(tools).is_string("f", "a")


def test_without_tools_none_is_unknown() -> None:
    assert Schemas(None).knows("f")
    assert Schemas([tool(None)]).knows("f")
    assert not Schemas([tool(None)]).knows("g")
