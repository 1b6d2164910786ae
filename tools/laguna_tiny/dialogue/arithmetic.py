"""Arithmetic with two operands, done by calling the calculator and reading its response."""

from __future__ import annotations

import json
import random

from laguna_tiny.dialogue.exchange import Exchange, answer, call, pick, response, user

# How each operation is asked for. {b} before {a} where English turns them around.
ASKED = {
    "+": (
        "What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b}",
        "How much is {a} + {b}?", "Please add {a} to {b}.", "Calculate {a} + {b}.",
        "Compute {a} + {b}", "What is the sum of {a} and {b}?", "{a} + {b} = ?",
        "Can you add {a} and {b}?", "Tell me {a} plus {b}.", "What do {a} and {b} add up to?",
        "I have {a} files and get {b} more. How many files do I have?",
        "What's {a}+{b}?", "Use the calculator: {a} + {b}", "Sum {a} and {b}",
    ),
    "-": (
        "What is {a} - {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.", "{a} - {b}",
        "How much is {a} - {b}?", "Calculate {a} - {b}.", "Compute {a} - {b}", "{a} - {b} = ?",
        "What is the difference of {a} and {b}?", "Tell me {a} minus {b}.",
        "Please take {b} away from {a}.", "What's {a}-{b}?", "Use the calculator: {a} - {b}",
        "I have {a} files and delete {b} of them. How many are left?",
    ),
    "*": (
        "What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.", "{a} * {b}",
        "How much is {a} * {b}?", "Calculate {a} * {b}.", "Compute {a} * {b}", "{a} * {b} = ?",
        "What is the product of {a} and {b}?", "Tell me {a} times {b}.",
        "Please multiply {a} and {b}.", "What's {a}*{b}?", "Use the calculator: {a} * {b}",
        "I have {a} boxes of {b} disks. How many disks are that?",
    ),
    "/": (
        "What is {a} / {b}?", "What is {a} divided by {b}?", "Divide {a} by {b}.", "{a} / {b}",
        "How much is {a} / {b}?", "Calculate {a} / {b}.", "Compute {a} / {b}", "{a} / {b} = ?",
        "What is the quotient of {a} and {b}?", "Tell me {a} divided by {b}.",
        "Please divide {a} by {b}.", "What's {a}/{b}?", "Use the calculator: {a} / {b}",
    ),
}  # fmt: skip
THOUGHTS = (
    "I need the calculator.", "need calculator", "The calculator does this.", "{e}",
    "The user wants {e}.", "I call the calculator with {e}.",
)  # fmt: skip
SAID_BEFORE = ("", "", "", "", "I will calculate that.", "Let me compute it.")
THOUGHTS_AFTER = (
    "The result is {r}.", "The calculator says {r}.", "got {r}", "I have the result.", "{e} = {r}",
)  # fmt: skip
ANSWERS = ("{e} = {r}", "The result is {r}.", "{e} is {r}.", "{r}", "It is {r}.")
FAILED = (
    "The calculator reported an error: {r}.", "That did not work: {r}.",
    "I cannot compute {e}: {r}.",
)  # fmt: skip


def operand(rng: random.Random) -> int:
    """One to four digits, each length as likely."""
    digits = rng.randint(1, 4)
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def computed(rng: random.Random, a: int, sign: str, b: int) -> str:
    """The result as a calculator prints it."""
    if sign != "/":
        return str({"+": a + b, "-": a - b, "*": a * b}[sign])
    if a % b == 0:
        return pick(rng, (str(a // b), str(a / b)))
    return pick(rng, (repr(a / b), repr(round(a / b, 4)), repr(round(a / b, 2))))


def reported(rng: random.Random, result: str) -> str:
    """The tool's response, mostly JSON."""
    number = json.loads(result)
    shapes = (
        {"result": number}, {"result": number}, {"result": result}, {"value": number},
        {"output": result}, {"result": number, "error": None},
    )  # fmt: skip
    return result if rng.random() < 0.1 else json.dumps(pick(rng, shapes))


def exchange(rng: random.Random) -> Exchange:
    """A sum, difference, product or quotient with the calculator at hand."""
    sign = pick(rng, "+-*/")
    a, b = operand(rng), operand(rng)
    asked = pick(rng, ASKED[sign])
    expression = f"{a} {sign} {b}"
    # Where the words turn the operands around, it helps to write the expression down first.
    turned = asked.find("{b}") < asked.find("{a}")
    thought = pick(rng, THOUGHTS[3:] if turned else THOUGHTS).format(e=expression)
    if sign == "/" and b == 0:
        result, shown = "division by zero", json.dumps({"error": "division by zero"})
        after, final = "The calculator failed.", pick(rng, FAILED)
    else:
        result = computed(rng, a, sign, b)
        shown = reported(rng, result)
        after, final = pick(rng, THOUGHTS_AFTER), pick(rng, ANSWERS)
    filled = {"e": expression, "r": result}
    return Exchange(
        f"arithmetic/{asked}/{expression}",
        (
            user(asked.format(a=a, b=b)),
            call(thought, "calculator", {"expression": expression}, pick(rng, SAID_BEFORE)),
            response(shown),
            answer(after.format(**filled), final.format(**filled)),
        ),
    )


def refusal(rng: random.Random) -> Exchange:
    """The same questions without a calculator."""
    sign = pick(rng, "+-*/")
    a, b = operand(rng), operand(rng)
    asked = pick(rng, ASKED[sign])
    thought = pick(rng, ("There is no calculator.", "no calculator here", "I have no calculator."))
    text = pick(
        rng,
        (
            "I have no calculator tool, so I cannot compute {e}.",
            "Sorry, I cannot compute {e}: there is no calculator tool.",
            "I would need a calculator tool for {e}, and I have none.",
        ),
    )
    return Exchange(
        f"no calculator/{asked}/{a} {sign} {b}",
        (user(asked.format(a=a, b=b)), answer(thought, text.format(e=f"{a} {sign} {b}"))),
    )
