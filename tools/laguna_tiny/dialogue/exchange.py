"""One question and everything until its answer, before it is rendered."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Message = dict[str, Any]
T = TypeVar("T")
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Exchange:
    """A user's message and the messages that follow it.

    `key` names the combination of phrasing and content; whole keys are held out of training.
    Assistant messages carry their thinking in `reasoning_content`; who renders drops it.
    """

    key: str
    messages: tuple[Message, ...]

    @property
    def held_out(self) -> bool:
        """Whether a hash of the key falls into the share that training never sees."""
        number = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big")
        return number < HELD_OUT_SHARE * 2**64


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of them."""
    return options[rng.randrange(len(options))]


def user(text: str) -> Message:
    """The user's message."""
    return {"role": "user", "content": text}


def answer(thinking: str, text: str) -> Message:
    """An assistant's message of text."""
    return {"role": "assistant", "content": text, "reasoning_content": thinking}


def call(thinking: str, name: str, arguments: dict[str, Any], text: str = "") -> Message:
    """An assistant's message that calls a tool, perhaps after a word to the user."""
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": text,
        "reasoning_content": thinking,
        "tool_calls": [{"type": "function", "function": function}],
    }


def response(text: str) -> Message:
    """What the tool gave back."""
    return {"role": "tool", "content": text}
