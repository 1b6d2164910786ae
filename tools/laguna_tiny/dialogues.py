"""Renders and encodes the generated conversations, and packs them into rows for training."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.chat import Tokenizer
from laguna_ref.chat.template import Template
from laguna_tiny.dialogue.conversation import Conversation, conversation

THINK, NOT_THINK, ASSISTANT, END_OF_TURN = 18, 19, 23, 24
PADDING = 9
HELD_OUT = 200
HELD_OUT_FILE = "dialogues_heldout.jsonl"
LENGTH = 1024


class Renderer:
    """The checkpoint's own template and tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.template = Template.from_folder(folder)
        self.tokenizer = Tokenizer.from_folder(folder)

    def encode(self, talk: Conversation) -> list[int]:
        """The whole conversation, control text as control tokens."""
        text = self.template.render(
            talk.messages, tools=list(talk.tools), add_generation_prompt=False,
            enable_thinking=talk.thinking,
        )  # fmt: skip
        return self.tokenizer.encode(text)


def learned(ids: list[int]) -> np.ndarray:
    """Whether each token is the model's own: of a turn of the assistant all after the opening
    <think> or </think>, which belongs to the prompt, and up to </assistant>."""
    mine, flags = False, np.zeros(len(ids), bool)
    opened = -1  # where the turn's <assistant> stands
    for number, token in enumerate(ids):
        flags[number] = mine
        if token == ASSISTANT:
            opened = number
        elif token in (THINK, NOT_THINK) and number == opened + 2:
            mine = True
        elif token == END_OF_TURN:
            mine = False
    return flags


def packed(
    parts: list[tuple[np.ndarray, np.ndarray]], rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of LENGTH + 1 tokens: whole conversations one after another, then padding; and flags."""
    parts = [part for part in parts if len(part[0]) <= LENGTH + 1]
    rng.shuffle(parts)
    open_rows: list[list[tuple[np.ndarray, np.ndarray]]] = []
    room: list[int] = []
    for part in parts:
        size = len(part[0])
        # Among the youngest rows the one that is filled best; older ones are full enough.
        recent = range(max(0, len(room) - 64), len(room))
        fitting = [number for number in recent if room[number] >= size]
        if fitting:
            number = min(fitting, key=room.__getitem__)
        else:
            open_rows.append([])
            room.append(LENGTH + 1)
            number = len(room) - 1
        open_rows[number].append(part)
        room[number] -= size
    ids = np.full((len(open_rows), LENGTH + 1), PADDING, np.uint16)
    flags = np.zeros(ids.shape, bool)
    for number, row in enumerate(open_rows):
        joined = np.concatenate([part[0] for part in row])
        ids[number, : len(joined)] = joined
        flags[number, : len(joined)] = np.concatenate([part[1] for part in row])
    return ids, flags


def generated(seed: int, count: int, held_out: bool) -> Iterator[Conversation]:
    """The same conversations for the same seed."""
    rng = random.Random(f"{seed}/{held_out}")
    for _ in range(count):
        yield conversation(rng, held_out)


def make(work: Path, folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Writes dialogues.npz (training rows) and the held-out conversations."""
    renderer = Renderer(folder)
    parts = []
    for talk in generated(seed, count, held_out=False):
        ids = renderer.encode(talk)
        parts.append((np.array(ids, np.uint16), learned(ids)))
    rows, flags = packed(parts, random.Random(seed))
    np.savez(work / "dialogues.npz", ids=rows, flags=flags)
    with (work / HELD_OUT_FILE).open("w", encoding="utf-8") as out:
        for talk in generated(seed, HELD_OUT, held_out=True):
            out.write(json.dumps(asdict(talk), ensure_ascii=False) + "\n")
    return {
        "conversations": count,
        "tokens": sum(len(part[0]) for part in parts),
        "longest": max(len(part[0]) for part in parts),
        "rows": len(rows),
        "padding": round(float(np.mean(rows == PADDING)), 3),
        "the model's own tokens": int(flags.sum()),
        "held out": HELD_OUT,
    }
