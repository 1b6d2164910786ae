"""Exchanges put together: system prompt, tools, one to four turns, thinking on or off."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from laguna_tiny.dialogue import absent, arithmetic, python_questions, shell
from laguna_tiny.dialogue.exchange import Exchange, Message, pick

CODING_AGENT = "You are a coding agent with access to a shell tool."
SYSTEMS = (  # None: the template's own
    None, None, None, None, "", "You are terse.", "You are a helpful assistant.", "Be brief.",
    "Answer in one sentence.", "You are a Python tutor.", "You help with Python.",
    "You are a friendly assistant that answers questions about Python.",
    "You are a careful assistant. Use tools when they help.", "You are an expert programmer.",
    "You are Laguna.", "Answer the user's questions.", "You are a coding assistant.",
)  # fmt: skip
SYSTEMS_FOR = {
    "shell": (CODING_AGENT, CODING_AGENT, "You can run commands.", "You are a coding agent."),
    "calculator": ("You have a calculator.", "Use the calculator for arithmetic."),
}
SHELL_TEXTS = (
    "Execute a bash command and return the output.",
    "Execute a bash command and return the output.",
    "Run a command in the shell.", "Runs a shell command.", "Run a bash command.",
)  # fmt: skip
CALCULATOR_TEXTS = (
    "Evaluate an arithmetic expression.", "A calculator.", "Computes an expression.",
    "Evaluate a mathematical expression and return the result.",
)  # fmt: skip
ARGUMENT_TEXTS = {
    "cmd": ("The command to run.", "The bash command.", "Command line"),
    "expression": ("The expression, such as 2 + 2.", "An arithmetic expression", "What to compute"),
}


def tool(rng: random.Random, name: str) -> dict[str, Any]:
    """A tool's schema as clients write it, in one of several ways."""
    argument = {"shell": "cmd", "calculator": "expression"}[name]
    texts = SHELL_TEXTS if name == "shell" else CALCULATOR_TEXTS
    field: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.3:
        field["description"] = pick(rng, ARGUMENT_TEXTS[argument])
    parameters = {"type": "object", "properties": {argument: field}, "required": [argument]}
    if rng.random() < 0.1:
        parameters = dict(reversed(parameters.items()))
    function = {"name": name, "description": pick(rng, texts), "parameters": parameters}
    if rng.random() < 0.2:
        del function["description"]
    if rng.random() < 0.1:
        function = dict(reversed(function.items()))
    return {"type": "function", "function": function} if rng.random() < 0.95 else function


@dataclass(frozen=True)
class Conversation:
    """What a client would send, answers included."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    thinking: bool

    def asked(self) -> Iterator[tuple[tuple[Message, ...], Message]]:
        """Every answer of the assistant and the messages before it."""
        for number, message in enumerate(self.messages):
            if message["role"] == "assistant":
                yield self.messages[:number], message


Maker = Callable[[random.Random], Exchange]


def makers(names: tuple[str, ...]) -> list[tuple[float, Maker]]:
    """What may be asked when these tools are offered, and how often."""
    with_calculator, with_shell = "calculator" in names, "shell" in names
    return [
        (3.0, arithmetic.exchange) if with_calculator else (1.0, arithmetic.refusal),
        (3.0, shell.exchange) if with_shell else (1.0, shell.refusal),
        (0.5 if names else 0.3, absent.exchange),
        (1.0 if names else 3.0, python_questions.exchange),
        (0.3, python_questions.small_talk),
    ]


def draw(rng: random.Random, maker: Maker, held_out: bool) -> Exchange:
    """An exchange of the split asked for."""
    while True:
        found = maker(rng)
        if found.held_out == held_out:
            return found


def without_thinking(message: Message) -> Message:
    """As a client sends it back that keeps no thinking, or as it is with thinking off."""
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def conversation(rng: random.Random, held_out: bool) -> Conversation:
    """One to four exchanges; thinking is on or off for all, or not kept in the earlier ones."""
    names = pick(
        rng,
        ((), (), ("shell",), ("shell",), ("calculator",), ("calculator",), ("shell", "calculator")),
    )
    names = tuple(rng.sample(names, len(names)))
    system = pick(rng, SYSTEMS)
    if names and rng.random() < 0.4:
        system = pick(rng, SYSTEMS_FOR[names[0]])
    weights, choices = zip(*makers(names), strict=True)
    turns = rng.choices((1, 2, 3, 4), (4, 3, 2, 2))[0]
    thinking, kept = rng.random() < 0.6, rng.random() < 0.8
    messages: list[Message] = []
    if system is not None:
        messages.append({"role": "system", "content": system})
    for turn in range(turns):
        exchange = draw(rng, rng.choices(choices, weights)[0], held_out)
        shown = thinking and (kept or turn == turns - 1)
        for message in exchange.messages:
            messages.append(message if shown else without_thinking(message))
    return Conversation(tuple(messages), tuple(tool(rng, name) for name in names), thinking)
