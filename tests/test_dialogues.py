"""The conversations that laguna-tiny learns from: generated, seeded, split by what is asked."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from laguna_tiny import dialogues
from laguna_tiny.dialogue.conversation import draw, makers

from laguna_ref.load import EMBEDDED

HELD_OUT = Path(__file__).parent / "data" / "held_out" / "dialogues.jsonl"
SEED = 1


def test_the_committed_ones_are_the_generators() -> None:
    committed = [json.loads(line) for line in HELD_OUT.read_text("utf-8").splitlines()]
    made = dialogues.generated(SEED, dialogues.HELD_OUT, held_out=True)
    assert [json.loads(json.dumps(asdict(talk))) for talk in made] == committed


def test_no_question_is_in_both_splits() -> None:
    rng = random.Random(SEED)
    for names in ((), ("shell", "calculator")):
        for _, maker in makers(names):
            seen = {draw(rng, maker, held_out=False).key for _ in range(200)}
            assert seen.isdisjoint(draw(rng, maker, held_out=True).key for _ in range(20))


def test_only_the_assistants_own_tokens_are_learned() -> None:
    renderer = dialogues.Renderer(EMBEDDED)
    for talk in islice(dialogues.generated(SEED, 50, held_out=False), 50):
        ids = np.array(renderer.encode(talk))
        text = renderer.tokenizer.decode(ids[dialogues.learned(ids.tolist())])
        turns = text.split("</assistant>")
        answers = [message for message in talk.messages if message["role"] == "assistant"]
        assert turns.pop() == ""
        assert len(turns) == len(answers)
        for turn, answer in zip(turns, answers, strict=True):
            thinking = answer.get("reasoning_content", "")
            assert turn.startswith(f"\n{thinking}\n</think>\n" if thinking else "\n")
            assert answer["content"] in turn
            assert turn.count("<tool_call>") == len(answer.get("tool_calls", ()))


def test_rows_hold_whole_conversations() -> None:
    parts = [(np.full(size, size, np.uint16), np.ones(size, bool)) for size in range(10, 900, 7)]
    rows, flags = dialogues.packed(parts, random.Random(SEED))
    assert rows.shape == flags.shape == (len(rows), dialogues.LENGTH + 1)
    assert flags.sum() == sum(len(ids) for ids, _ in parts)
    assert (rows[~flags] == dialogues.PADDING).all()
    for size in range(10, 900, 7):
        assert ((rows == size).sum(axis=1) % size == 0).all()
