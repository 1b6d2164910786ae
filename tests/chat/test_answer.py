"""Answers: any split is the whole, the slow twin agrees, and each rule by an example."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laguna_ref.chat.answer import Answer, AnswerParser, Call, join, parse, thinking_open
from tests.chat.answers import SIZES, TEXTS, TOOLS, slow_parse, streamed

# 1,000 texts, ten splits each.


@settings(max_examples=1000)
@given(text=TEXTS, splits=st.lists(SIZES, min_size=9, max_size=9), thinking=st.booleans())
def test_any_split_gives_the_whole(text: str, splits: list[list[int]], thinking: bool) -> None:
    whole = parse(text, thinking=thinking, tools=TOOLS)
    for sizes in ([1], *splits):
        assert streamed(text, sizes, thinking=thinking, tools=TOOLS) == whole


@settings(max_examples=1000)
@given(text=TEXTS, thinking=st.booleans())
def test_the_slow_twin_agrees(text: str, thinking: bool) -> None:
    found = parse(text, thinking=thinking, tools=TOOLS)
    calls = [(call.name, call.arguments) for call in found.calls]
    assert (found.reasoning, found.content, calls) == slow_parse(text, thinking=thinking)


@given(text=TEXTS, thinking=st.booleans())
def test_arguments_are_json_objects_that_utf8_can_carry(text: str, thinking: bool) -> None:
    for call in parse(text, thinking=thinking, tools=TOOLS).calls:
        call.arguments.encode("utf-8")
        arguments = json.loads(call.arguments, parse_constant=pytest.fail)
        assert json.dumps(arguments, ensure_ascii=False) == call.arguments


@given(text=TEXTS, calls=st.booleans())
def test_what_is_not_parsed_stands_as_it_is(text: str, calls: bool) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "parse_reasoning": False, "parse_tools": calls}
    found = parse(text, thinking=True, **options)
    assert found.reasoning is None
    assert calls or found.content == (text or None)
    assert found == parse(text, thinking=False, tools=TOOLS, parse_tools=calls)


@given(text=TEXTS, thinking=st.booleans())
def test_what_is_certain_is_out_at_once(text: str, thinking: bool) -> None:
    """Of thinking and content only what may be the beginning of a tag is held back."""
    parser = AnswerParser(thinking=thinking, tools=TOOLS)
    watched, given, out = (
        ("<think>", "</think>", "<tool_call>") if thinking else ("<tool_call>",),
        "",
        "",
    )
    for character in "x" + re.sub("</?think>|<tool_call>", "y", text):
        given += character
        out += "".join(delta.reasoning + delta.content for delta in parser.push(character))
        held = given.removeprefix(out)
        assert given == out + held
        assert any(tag.startswith(held) and tag != held for tag in watched)


def test_a_string_value_streams_character_by_character() -> None:
    parser = AnswerParser(thinking=False, tools=TOOLS)
    parser.push("<tool_call>shell\n<arg_key>cmd</arg_key>\n<arg_value>")
    fragments = []
    for character in 'ls "日</ar':
        fragments.append([delta.call and delta.call.arguments for delta in parser.push(character)])
    assert fragments == [["l"], ["s"], [" "], ['\\"'], ["日"], [], [], [], []]
    assert [delta.call.arguments for delta in parser.push("k") if delta.call] == ["</ark"]


# Rules, by examples. "↵" is a newline.

SHELL = "<tool_call>shell↵<arg_key>cmd</arg_key>↵<arg_value>ls</arg_value>↵</tool_call>"
CUT = SHELL.partition("arg_value>↵")[0]
LS = Call("shell", '{"cmd": "ls"}')


def read(text: str, thinking: bool = False) -> tuple[Any, ...]:
    found = parse(text.replace("↵", "\n"), thinking=thinking, tools=TOOLS)
    return found.reasoning, found.content, found.calls


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        ("↵why↵</think>↵Because.↵", "\nwhy\n", "\nBecause.\n", ()),
        ("why</think>Because.", "why", "Because.", ()),
        ("</think>", None, None, ()),
        ("why", "why", None, ()),
        ("why</thi", "why</thi", None, ()),
        ("<think>why<think>?</think>B", "why?", "B", ()),
        ("a</think>b<think>c</think>d", "a", "b<think>c</think>d", ()),
        (f"a{SHELL}</think>{SHELL}", f"a{SHELL}".replace("↵", "\n"), None, (LS,)),
        (f"↵a↵</think>↵{SHELL}↵", "\na\n", None, (LS,)),
    ],
)
def test_thinking(text: str, reasoning: str | None, content: str | None, calls: Any) -> None:
    assert read(text, thinking=True) == (reasoning, content, calls)


def test_closed_thinking_is_content_as_it_stands() -> None:
    assert read("a<think>b</think>c") == (None, "a<think>b</think>c", ())


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (SHELL.replace("↵", ""), None, [LS]),
        (f"↵I look.↵{SHELL}↵", "\nI look.\n", [LS]),
        (f"{SHELL}↵{SHELL}", None, [LS, LS]),
        ("<tool_call>now↵</tool_call>", None, [Call("now", "{}")]),
        ("<tool_call>↵ now</tool_call>", None, [Call("now", "{}")]),
        ("<tool_call>now↵</tool_call>↵".replace("now", "unknown"), None, [Call("unknown", "{}")]),
        # Text where none belongs.
        (f"{SHELL} done", " done", [LS]),
        (f"a {SHELL} b {SHELL} ", "a  b ", [LS, LS]),
        (SHELL.replace("↵<arg_k", "↵so: <arg_k"), SHELL.replace("↵<arg_k", "↵so: <arg_k"), []),
        (SHELL.replace(">↵</t", "> so </t"), None, [LS]),
        (SHELL.replace("y>↵<", "y> so <"), None, [LS]),
        # No calls.
        ("<tool_call></tool_call>", "<tool_call></tool_call>", []),
        ("<tool_call> ↵</tool_call>", "<tool_call> ↵</tool_call>", []),
        ("<tool_call>a<b</tool_call>", "<tool_call>a<b</tool_call>", []),
        (f"<tool_call>a{SHELL}", "<tool_call>a", [LS]),
        ("<tool_call>now↵", "<tool_call>now↵", []),
        ("<tool_call>now</tool_", "<tool_call>now</tool_", []),
        ("a <tool_", "a <tool_", []),
        ("</tool_call>", "</tool_call>", []),
        ("↵ ↵", "↵ ↵", []),
        # Keys and values.
        (SHELL.replace("ls", "</tool_call><tool_call>"), None,
         [Call("shell", '{"cmd": "</tool_call><tool_call>"}')]),
        (SHELL.replace("ls", " ls↵"), None, [Call("shell", '{"cmd": " ls\\n"}')]),
        (SHELL.replace("cmd", " cmd↵"), None, [LS]),
        (SHELL.replace("cmd", "any"), None, [Call("shell", '{"any": "ls"}')]),
        (SHELL.replace("<arg_key>", "<arg_key>any</arg_key><arg_key>"), None, [LS]),
        (SHELL.replace("<arg_key>", "<arg_key>any<arg_key>"), None, [LS]),
        (SHELL.replace("↵</t", "<arg_key>any</arg_key></t"), None, [LS]),
        (SHELL.replace("↵</t", "<arg_key>any</t"), None, [LS]),
        (SHELL.replace("↵</t", "<arg_key>cmd</arg_key><arg_value>rm</arg_value></t"), None, [LS]),
        # Cut short.
        (SHELL.removesuffix("</tool_call>"), None, [LS]),
        (CUT, None, [Call("shell", '{"cmd": "ls</"}')]),
        (CUT.replace("cmd", "any"), None, [Call("shell", "{}")]),
        ("<tool_call>shell↵<arg_key>cm", None, [Call("shell", "{}")]),
        (SHELL.replace("</tool_call>", SHELL), None, [LS, LS]),
    ],
)  # fmt: skip
def test_calls(text: str, content: str | None, calls: list[Call]) -> None:
    expected = None if content is None else content.replace("↵", "\n")
    assert read(text) == (None, expected, tuple(calls))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call></tool_call>", "a <tool_call> without a name is content"),
        ("<tool_call>a b<c", "no <arg_key> or </tool_call> after <tool_call>'a b': content"),
        (f"{SHELL}.", "text after a tool call is content"),
        (SHELL.replace("shell", "rm"), "call 0 ('rm'): no tool of the request"),
        (SHELL.replace("y>↵<", "y>so<"),
         "call 0 ('shell'): text that is no argument, left out: 'so'"),
        (SHELL.replace("</arg_key>↵", ""),
         "call 0 ('shell'): no </arg_key> after the key 'cmd', left out"),
        (SHELL.replace("<arg_k", "<arg_key>any</arg_key><arg_k"),
         "call 0 ('shell'): no value for 'any', left out"),
        (SHELL.replace("↵</t", "<arg_key>cmd</arg_key><arg_value>rm</arg_value></t"),
         "call 0 ('shell'): the key 'cmd' again, left out with its value 'rm'"),
        (CUT, "call 0 ('shell'): the value of 'cmd' was cut short"),
        (CUT.replace("cmd", "any"),
         "call 0 ('shell'): the value of 'any' was cut short and is left out: 'ls</'"),
        (SHELL.replace("</tool_call>", SHELL),
         "call 0 ('shell'): no </tool_call> before the next <tool_call>"),
        (SHELL.removesuffix("</tool_call>"), "call 0 ('shell'): no </tool_call>"),
    ],
)  # fmt: skip
def test_problems_are_told(text: str, problem: str) -> None:
    found = parse(text.replace("↵", "\n"), thinking=False, tools=TOOLS)
    assert problem in found.problems


def test_so_are_those_of_thinking() -> None:
    found = parse(f"a {SHELL} {SHELL}", thinking=True, tools=TOOLS).problems
    assert found == (
        "a <tool_call> inside the thinking is thinking, not a call",
        "the thinking was not closed by </think>",
    )


def test_well_formed_answers_have_no_problems() -> None:
    for layout in (SHELL.replace("↵", "\n"), SHELL.replace("↵", "")):
        assert parse(f"a</think>b{layout}\n{layout}", thinking=True, tools=TOOLS).problems == ()


def test_problems_are_bounded_and_short() -> None:
    found = parse("<tool_call>" + "x" * 10_000 + "<" * 3000, thinking=False)
    assert max(map(len, found.problems)) < 200
    many = parse("<tool_call>" * 3000, thinking=False).problems
    assert len(many) == 101
    assert many[-1] == "and further problems"


# Where a prompt leaves the thinking.

HISTORY = [2, 23, 18, 40, 19, 41, 24, 50]


@pytest.mark.parametrize(
    ("ending", "is_open"),
    [
        ([23, 18], True),
        ([23, 19], False),
        ([23, 42, 18], True),
        ([23], True),
        ([23, 19, 42], False),
    ],
)
def test_the_last_turn_says_whether_thinking_is_open(ending: list[int], is_open: bool) -> None:
    assert thinking_open([*HISTORY, *ending]) is is_open
    assert thinking_open(ending) is is_open


# Hostile texts.

HOSTILE = (
    "<tool_call>", "<tool_call>f<arg_key>",
    "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value>",
    "<", "\n", "a", "<tool_call>f</tool_call>x", "<tool_call>a<b", "</think", "<think>",
)  # fmt: skip
OPENINGS = (
    "",
    "<tool_call>",
    "<tool_call>f<arg_key>",
    "<tool_call>f<arg_key>any</arg_key><arg_value>",
)


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_is_not_piled_up(unit: str, opening: str) -> None:
    """No text is looked at again: what waits between two pushes is shorter than a tag."""
    text = opening + unit * (4000 // len(unit))
    parser = AnswerParser(thinking=not opening, tools=TOOLS)
    for character in text:
        parser.push(character)
        assert len(parser._reasoning._pending) < len("<tool_call>")
        assert parser._tools is not None
        assert len(parser._tools._pending) < len("</arg_value>")


def test_a_megabyte_takes_seconds() -> None:
    """Quadratic work would take hours."""
    unit = "<tool_call>f<arg_key>"
    text = unit * (1_000_000 // len(unit))
    started = time.perf_counter()
    parser = AnswerParser(thinking=False, tools=TOOLS)
    deltas = [delta for character in text for delta in parser.push(character)]
    by_character = join([*deltas, *parser.finish()], parser.problems)
    assert by_character == parse(text, thinking=False, tools=TOOLS)
    assert time.perf_counter() - started < 120


def test_nothing_is_an_answer_too() -> None:
    assert parse("", thinking=True).problems == ("the thinking was not closed by </think>",)
    assert parse("", thinking=False) == Answer(None, None, (), ())
