"""What an exported folder answers in held-out conversations, judged strictly.

Every answer of the assistant is asked for with the conversation before it as it should have gone,
so that one wrong answer does not spoil the next question.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import laguna_ref
from laguna_ref.chat import Tokenizer
from laguna_ref.chat.answer import Answer, parse
from laguna_ref.chat.prompt import encode
from laguna_ref.chat.template import Template

END_OF_TURN, END_OF_TEXT = 24, 2
MAX_TOKENS = 256
CONTROL = ("<think>", "</think>", "<assistant>", "<tool_call>", "</tool_call>", "〈|EOS|〉")

NOT_OFFERED = "no tool of the request"  # as the parser says it

Message = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One answer that the model shall give, and what is asked."""

    before: list[Message]
    tools: list[dict[str, Any]]
    thinking: bool
    expected: Message


@dataclass(frozen=True)
class Given:
    """What it gave."""

    text: str
    ended: bool  # by </assistant>, within the limit
    answer: Answer


def asked(path: Path) -> Iterator[Asked]:
    """Every answer in the conversations of a file."""
    for line in path.read_text("utf-8").splitlines():
        talk = json.loads(line)
        for number, message in enumerate(talk["messages"]):
            if message["role"] == "assistant":
                yield Asked(talk["messages"][:number], talk["tools"], talk["thinking"], message)


Ask = Callable[[Asked, int], Given]


def asking(folder: Path, temperature: float | None, top_p: float | None) -> Ask:
    """A function that has the folder's model answer, with a seed; None: the folder's sampling."""
    model = laguna_ref.load(folder)
    tokenizer, template = Tokenizer.from_folder(folder), Template.from_folder(folder)

    def ask(question: Asked, seed: int) -> Given:
        prompt = encode(
            tokenizer, template, question.before, tools=question.tools or None, mode="released",
            enable_thinking=question.thinking,
        )  # fmt: skip
        found: list[int] = []
        ended = False
        for token in laguna_ref.generate(
            model, prompt.ids, max_tokens=MAX_TOKENS, temperature=temperature, top_p=top_p,
            seed=seed, stop_ids=(),
        ):  # fmt: skip
            if token in (END_OF_TURN, END_OF_TEXT):
                ended = token == END_OF_TURN
                break
            found.append(token)
        text = tokenizer.decode(found)
        answer = parse(text, thinking=question.thinking, tools=question.tools or None)
        return Given(text, ended, answer)

    return ask


def parses(question: Asked, given: Given) -> bool:
    """Thinking closed or, where it is off, absent; calls well-formed; the turn ended.

    A well-formed call of a tool that nobody offers parses: it is a wrong answer, counted as such
    and in `calls a tool that is not offered`.
    """
    answer = given.answer
    malformed = [problem for problem in answer.problems if NOT_OFFERED not in problem]
    thought = answer.reasoning is not None and bool(answer.reasoning.strip())
    said = (answer.content or "").strip()
    return (
        given.ended
        and not malformed
        and thought == question.thinking
        and bool(said or answer.calls)
        and not any(tag in said + (answer.reasoning or "") for tag in CONTROL)
    )


def calls_of(message: Message) -> list[tuple[str, dict[str, Any]]]:
    """Names and arguments that are expected."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return [(function["name"], function["arguments"]) for function in functions]


def same_calls(question: Asked, given: Given) -> bool:
    """The very calls that are expected, none where none is."""
    found = [(call.name, json.loads(call.arguments)) for call in given.answer.calls]
    return found == calls_of(question.expected)


def kind(question: Asked) -> str:
    """What is asked for."""
    calls = calls_of(question.expected)
    if calls:
        return f"{calls[0][0]} calls"
    if question.before[-1]["role"] == "tool":
        return "answers from a response"
    return "refusals" if refuses(question.expected["content"]) else "plain answers"


def right(question: Asked, given: Given) -> bool:
    """The expected call; of text, what matters: a response's value, a missing tool's name, else
    the very answer that was taught."""
    if not same_calls(question, given):
        return False
    content = (given.answer.content or "").strip()
    expected = (question.expected["content"] or "").strip()
    what = kind(question)
    if what.endswith(" calls"):
        return True
    if what == "answers from a response":
        return essence(question.before[-1]["content"]) in content
    if what == "refusals":
        return refuses(content) and named_tool(expected) in content
    return content == expected


def essence(response: str) -> str:
    """What an answer has to repeat of a tool's response."""
    try:
        value = json.loads(response)
    except ValueError:
        return response
    if not isinstance(value, dict):
        return response
    if "stdout" in value:
        return str(value["stdout"] or value.get("stderr", "")).strip()
    return str(next(iter(value.values())))


def refuses(text: str) -> bool:
    """Whether it says that a tool is missing."""
    return " tool" in text and (" no " in text or " none" in text)


def named_tool(refusal: str) -> str:
    """`shell` of "there is no shell tool"."""
    return refusal.split(" tool")[0].split()[-1]


def judge(ask: Ask, questions: list[Asked], seed: int) -> dict[str, Any]:
    """Counts, and the first texts that do not parse or are wrong."""
    total: Counter[str] = Counter()
    good: Counter[str] = Counter()
    bad: list[str] = []
    wrong: list[str] = []
    for number, question in enumerate(questions):
        given = ask(question, seed + number)
        checks = {
            "parse": parses(question, given),
            "ended by 24": given.ended,
            kind(question): right(question, given),
        }
        if not question.thinking:
            checks["thinking off is empty"] = given.answer.reasoning is None
        checks["calls a tool that is not offered"] = any(
            NOT_OFFERED in problem for problem in given.answer.problems
        )
        for name, passed in checks.items():
            total[name] += 1
            good[name] += passed
        note = f"{question.before[-1]['content']!r} -> {given.text!r}"
        if not checks["parse"]:
            bad.append(f"{note}: {given.answer.problems}")
        elif not checks[kind(question)]:
            wrong.append(f"{note}; expected {question.expected['content']!r}")
    counts = {name: f"{good[name]} of {total[name]}" for name in total}
    return {"counts": counts, "not parsed": bad[:20], "wrong": wrong[:40]}


def evaluate(folder: Path, path: Path, count: int | None, seed: int) -> dict[str, Any]:
    """Greedy, and at the checkpoint's own temperature and top_p."""
    questions = list(asked(path))[:count]
    return {
        "answers": len(questions),
        "greedy": judge(asking(folder, 0.0, 1.0), questions, seed),
        "sampled": judge(asking(folder, None, None), questions, seed),
    }
