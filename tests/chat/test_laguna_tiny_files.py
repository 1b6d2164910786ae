"""The embedded checkpoint's tokenizer and chat template against those of the released XS.2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from laguna_ref.chat import Tokenizer
from laguna_ref.load import EMBEDDED

DATA = Path(__file__).parents[1] / "data"
RENDERED: dict[str, Any] = json.loads((DATA / "rendered_prompts.json").read_text("utf-8"))
PRETOKENIZED: dict[str, list[str]] = json.loads((DATA / "pretokenized.json").read_text("utf-8"))
ADDED: dict[str, dict[str, Any]] = json.loads((DATA / "added_tokens_xs2.json").read_text("utf-8"))

NAMED = {
    "bos_token": "〈|EOS|〉",
    "cls_token": "〈|CLS|〉",
    "eos_token": "〈|EOS|〉",
    "mask_token": "〈|MASK|〉",
    "pad_token": "〈|PAD|〉",
    "sep_token": "〈|SEP|〉",
    "unk_token": "〈|UNK|〉",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(EMBEDDED)


@pytest.fixture(scope="module")
def library() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


def embedded_json(name: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((EMBEDDED / name).read_text("utf-8"))
    return raw


def test_a_rendered_prompt_is_encoded_with_its_special_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(RENDERED["tool_roundtrip_think"]["xs2"])
    assert [token for token in tokens if token < len(ADDED)] == [2, 23, 18, 19, 25, 26, 24, 23, 18]


def test_special_tokens_are_the_released_ones() -> None:
    added = embedded_json("tokenizer.json")["added_tokens"]
    assert {str(entry.pop("id")): entry for entry in added} == ADDED
    assert len(ADDED) == 70
    assert embedded_json("tokenizer_config.json")["added_tokens_decoder"] == ADDED
    visible = {int(number) for number, entry in ADDED.items() if not entry["special"]}
    assert visible == {18, 19, 23, 24, 25, 26}


def test_special_tokens_have_the_released_roles() -> None:
    config = embedded_json("tokenizer_config.json")
    assert {name: config[name] for name in NAMED} == NAMED
    assert embedded_json("special_tokens_map.json") == NAMED
    assert embedded_json("generation_config.json") == {
        "bos_token_id": 2,
        "do_sample": True,
        "eos_token_id": [2, 24],
        "max_new_tokens": 2048,
        "pad_token_id": 9,
        "temperature": 0.7,
        "top_p": 0.9,
    }


def test_other_entries_are_bytes_and_merges(
    tokenizer: Tokenizer, library: tokenizers.Tokenizer
) -> None:
    raw = embedded_json("tokenizer.json")
    assert tokenizer.vocab_size == len(raw["model"]["vocab"]) == 3072
    assert len(raw["model"]["merges"]) == 3072 - 70 - 256
    assert raw["normalizer"] is None
    assert not raw["model"]["byte_fallback"]
    assert {tokenizer.token_bytes(token) for token in range(70, 326)} == {
        bytes([byte]) for byte in range(256)
    }
    assert library.decode([2, 18, 24], skip_special_tokens=True) == "<think></assistant>"


@pytest.mark.parametrize("text", PRETOKENIZED)
def test_text_is_split_as_the_released_tokenizer_splits_it(
    library: tokenizers.Tokenizer, text: str
) -> None:
    pieces = [piece for piece, _ in library.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == PRETOKENIZED[text]


@given(text=st.text(max_size=40))
@example("")
@example("def f(x):\r\n\treturn 'naïve 日本語 🙂'  \n\n\n")
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["", "import os\n", "〈|EOS|〉import os\n"])
def test_no_token_is_added(tokenizer: Tokenizer, library: tokenizers.Tokenizer, text: str) -> None:
    """The template writes the beginning of text; a second one would be a different prompt."""
    tokens = tokenizer.encode(text)
    assert tokens.count(2) == text.count("〈|EOS|〉")
    assert library.encode(text, add_special_tokens=True).ids == tokens
