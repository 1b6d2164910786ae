"""The embedded checkpoint's answers in conversations that it has not seen."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from laguna_tiny import judging

from laguna_ref.load import EMBEDDED

HELD_OUT = Path(__file__).parent / "data" / "held_out" / "dialogues.jsonl"

QUICK = 30
"""Answers asked for in every run; all of them, greedy and sampled, with -m slow."""
PARSED, RIGHT_CALLS = 0.98, 0.80
"""What the model card promises: shares of the answers, and of the two-operand sums."""

SHELL = {
    "type": "function",
    "function": {
        "name": "shell",
        "description": "Execute a bash command and return the output.",
        "parameters": {
            "type": "object",
            "properties": {"cmd": {"type": "string"}},
            "required": ["cmd"],
        },
    },
}
AGENT = {"role": "system", "content": "You are a coding agent with access to a shell tool."}
RUN = {"role": "user", "content": "Run uname -a"}
PRINTED = "Darwin arm64 25.1.0"


@cache
def questions() -> list[judging.Asked]:
    return list(judging.asked(HELD_OUT))


@cache
def greedy() -> judging.Ask:
    return judging.asking(EMBEDDED, 0.0, 1.0)


def share(count: str) -> float:
    good, total = map(int, count.split(" of "))
    return good / total


def check(found: dict[str, Any]) -> None:
    """Of few answers one may be wrong: less is no evidence against the promised shares."""
    for name, promised in (("parse", PARSED), ("calculator calls", RIGHT_CALLS)):
        good, total = map(int, found["counts"][name].split(" of "))
        assert total - good <= max(1, (1 - promised) * total), (name, found)
    assert share(found["counts"]["thinking off is empty"]) == 1, found


def test_the_first_held_out_answers() -> None:
    found = judging.judge(greedy(), questions()[:QUICK], seed=0)
    assert int(found["counts"]["calculator calls"].split(" of ")[1]) > 2
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["greedy", "sampled"])
def test_all_held_out_answers(how: str) -> None:
    ask = greedy() if how == "greedy" else judging.asking(EMBEDDED, None, None)
    check(judging.judge(ask, questions(), seed=1))


def answered(before: list[judging.Message], thinking: bool, called: bool) -> judging.Given:
    """What it answers, which must parse and be a call or none."""
    question = judging.Asked(before, [SHELL], thinking, {"content": None})
    given = greedy()(question, 0)
    assert judging.parses(question, given), given
    assert bool(given.answer.calls) == called, given
    return given


@pytest.mark.parametrize("thinking", [True, False])
def test_the_shell_is_called_and_its_response_is_read(thinking: bool) -> None:
    first = answered([AGENT, RUN], thinking, called=True).answer
    (call,) = first.calls
    assert call.name == "shell"
    assert json.loads(call.arguments) == {"cmd": "uname -a"}
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    back = {
        "role": "assistant",
        "content": first.content,
        "reasoning_content": first.reasoning,
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
    }
    response = json.dumps({"stdout": PRINTED, "exit_code": "0"})
    tool = {"role": "tool", "tool_call_id": "call_0", "content": response}
    second = answered([AGENT, RUN, back, tool], thinking, called=False).answer
    assert PRINTED in (second.content or "")
