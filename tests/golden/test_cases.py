"""Case files: the grammar, what is refused, and the committed cases on every published model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref import LagunaConfig
from laguna_ref.checkpoint import PRESETS, preset
from laguna_ref.golden.cases import DEFAULT_POINTS, Case, read_cases
from laguna_ref.golden.errors import GoldenError
from tests.small import small_config, uniform_config

CONFIG = LagunaConfig.from_dict(small_config())  # window 4, vocabulary 40
HEAD = "format = 1\n[prompts]\nabc = [2, 5, 7]\nnoise = { random = 7 }\n"
CASE = '[[case]]\nname = "a"\nprompt = "abc"\n'


def read(path: Path, body: str, config: LagunaConfig = CONFIG) -> list[Case]:
    file = path / "cases.toml"
    file.write_text(body)
    return read_cases(file, config)


def one(path: Path, **keys: Any) -> Case:
    keys = {"name": "x", "prompt": "abc"} | keys
    lines = [f"{key} = {spelled(value)}" for key, value in keys.items()]
    (case,) = read(path, f"{HEAD}[[case]]\n" + "\n".join(lines))
    return case


def spelled(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(spelled, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def test_a_case_of_defaults(tmp_path: Path) -> None:
    assert one(tmp_path) == Case("x", (2, 5, 7), None, "checkpoint", (3,), DEFAULT_POINTS, None)


def test_lengths_follow_the_models_window(tmp_path: Path) -> None:
    for length, count in (("W", 4), ("W-1", 3), ("2W+1", 9), ("10W", 40), (5, 5)):
        tokens = one(tmp_path, length=length).tokens
        assert len(tokens) == count
        assert tokens == tuple([2, 5, 7][i % 3] for i in range(count))


def test_calls(tmp_path: Path) -> None:
    assert one(tmp_path, length=9, prefill=4).chunks == (4, 4, 1)
    assert one(tmp_path, length=9, prefill="W-1", decode=2).chunks == (3, 3, 1, 1, 1)
    assert one(tmp_path, decode=3).chunks == (1, 1, 1)
    assert one(tmp_path, length=9, decode="W").chunks == (5, 1, 1, 1, 1)


def test_positions_and_places_of_logits(tmp_path: Path) -> None:
    assert one(tmp_path, first_position=100).positions == (100, 101, 102)
    assert one(tmp_path, length=9, logits_at=[-1, 0, "W", 4, -9]).logits_at == (0, 4, 8)
    assert one(tmp_path, logits_at=[]).logits_at == ()


def test_drawn_tokens_are_of_the_models_vocabulary_and_always_the_same(tmp_path: Path) -> None:
    tokens = one(tmp_path, prompt="noise", length=8).tokens
    raw = np.random.PCG64(7).random_raw(8).tolist()
    assert tokens == tuple(value % 40 for value in raw)
    assert tokens[:4] == (3, 5, 26, 34)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "A b"}, r"case\[0\].name: bad name; expected small letters.*; found A b"),
        ({"size": 3}, r"case\[0\].size: unknown key"),
        ({"prompt": "abd"}, "x.prompt: no such prompt; expected abc, noise; found abd"),
        ({"length": 0}, "x.length: bad size"),
        ({"length": True}, "x.length: bad size"),
        ({"length": "W-4"}, 'x.length: bad size; expected 1 or more, or such as "2W.1"; found 0'),
        ({"length": "W*2"}, "x.length: bad size"),
        ({"prompt": "noise"}, "x.length: drawn tokens need a length"),
        ({"kv_cache": "int8"}, "x.kv_cache: unknown kv_cache; expected checkpoint or float or fp8"),
        ({"decode": 4}, "x.decode: more tokens than there are; expected 3; found 4"),
        ({"prefill": 0}, "x.prefill: bad size"),
        ({"first_position": 510}, "x.first_position: position out of range; expected 0 to 511"),
        ({"length": 513}, "prompts.abc: too many tokens for max_position_embeddings"),
        ({"points": ["lm_heads"]}, "x.points: lm_heads: no trace point has this name"),
        ({"points": "lm_head"}, "x.points: wrong type"),
        ({"logits_at": [3]}, "x.logits_at: no such position; expected -3 to 2; found 3"),
        ({"logits_at": [-4]}, "x.logits_at: bad size"),
        ({"logits_at": 1}, "x.logits_at: wrong type"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(GoldenError, match=message) as caught:
        one(tmp_path, **keys)
    assert "cases.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("format = 2\n", "format: unknown format; expected 1; found 2"),
        ("format = 1\n", "prompts: no prompts"),
        (HEAD, "case: no cases"),
        (HEAD + "[[case]]\nname = 3\n", r"case\[0\].name: bad name"),
        (HEAD + '[[case]]\nname="a"\nprompt="abc"\n' * 2, "case: two cases of one name; found a"),
        ("format = 1\nextra = 2\n", "extra: unknown key; expected case, format, prompts"),
        ("format = \n", "is not valid TOML"),
        (HEAD.replace("5", "40") + CASE, r"prompts\.abc: token 1 is not in the vocabulary"),
        (HEAD.replace("5", "9" * 20) + CASE, r"prompts\.abc"),
        (HEAD.replace("7 }", "-1 }") + '[[case]]\nname="a"\nprompt="noise"\nlength=2', "bad seed"),
    ],
)  # fmt: skip
def test_refused_files(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(GoldenError, match=message):
        read(tmp_path, body)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="cannot be read"):
        read_cases(tmp_path / "none.toml", CONFIG)
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    with pytest.raises(GoldenError, match=r"is not UTF-8 \(byte 0\)"):
        read_cases(tmp_path / "binary.toml", CONFIG)


def test_a_window_where_there_is_none(tmp_path: Path) -> None:
    full = LagunaConfig.from_dict(uniform_config(2))
    body = HEAD + '[[case]]\nname = "a"\nprompt = "abc"\nlength = "W"\n'
    with pytest.raises(GoldenError, match=r"a\.length: the model has no sliding layer"):
        read(tmp_path, body, full)


def lengths(config: LagunaConfig | None) -> dict[str, int]:
    return {case.name: len(case.tokens) for case in read_cases(config=config)}


def test_the_committed_cases_surround_the_window() -> None:
    found = lengths(None)
    assert [found[f"window{end}"] for end in ("-minus-1", "", "-plus-1")] == [63, 64, 65]
    assert found["two-windows-plus-1"] == 129


@pytest.mark.parametrize("name", PRESETS)
def test_the_committed_cases_serve_every_published_model(name: str) -> None:
    found = lengths(LagunaConfig.from_dict(preset(name)))
    assert found["two-windows-plus-1"] == 1025
