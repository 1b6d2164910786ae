"""The tokenizer: what it adds (nothing), and text that arrives token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from laguna_ref.chat import Tokenizer
from laguna_ref.errors import CheckpointError, InputError
from laguna_ref.load import EMBEDDED
from tests.chat.small_tokenizer import VOCAB_SIZE, tokenizer_json


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def embedded() -> Tokenizer:
    return Tokenizer.from_folder(EMBEDDED)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    decoder = tokenizer.stream()
    return [*(decoder.push(token) for token in tokens), decoder.finish()]


# Ids beyond the vocabulary too: a model's is often padded.
TOKENS = st.lists(st.integers(0, VOCAB_SIZE + 5), max_size=30)


@given(tokens=TOKENS)
def test_pieces_join_to_the_text_of_all_tokens(tokenizer: Tokenizer, tokens: list[int]) -> None:
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(data=st.data())
def test_so_do_those_of_the_embedded_checkpoint(embedded: Tokenizer, data: st.DataObject) -> None:
    ids = st.integers(0, embedded.vocab_size)
    tokens = data.draw(st.lists(ids, max_size=30))
    assert "".join(streamed(embedded, tokens)) == embedded.decode(tokens)


@given(tokens=TOKENS, cut=st.integers(0, 30))
def test_a_stream_knows_no_chunks(tokenizer: Tokenizer, tokens: list[int], cut: int) -> None:
    whole = streamed(tokenizer, tokens)
    decoder = tokenizer.stream()
    first = [decoder.push(token) for token in tokens[:cut]]
    rest = [decoder.push(token) for token in tokens[cut:]]
    assert [*first, *rest, decoder.finish()] == whole


@given(text=st.text(max_size=40))
@example("🦊")
@example("e\u0301 北 〈|EOS|〉 <think>")
def test_text_survives_and_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    pieces = streamed(tokenizer, tokens)
    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


def test_a_character_appears_with_its_last_byte(tokenizer: Tokenizer) -> None:
    tokens = [token for byte in "🦊".encode() for token in _byte_token(tokenizer, byte)]
    assert streamed(tokenizer, tokens) == ["", "", "", "🦊", ""]
    assert streamed(tokenizer, tokens[:3]) == ["", "", "", "\ufffd"]


def _byte_token(tokenizer: Tokenizer, byte: int) -> list[int]:
    found = [token for token in range(VOCAB_SIZE) if tokenizer.token_bytes(token) == bytes([byte])]
    assert len(found) == 1
    return found


def test_special_tokens_are_read_but_never_added(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode("〈|EOS|〉<think>") == [2, 18]
    assert tokenizer.decode([2, 18, 24]) == "〈|EOS|〉<think></assistant>"
    assert tokenizer.vocab_size == VOCAB_SIZE


def test_text_must_be_unicode(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="not Unicode"):
        tokenizer.encode("a\udc80")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the checkpoint has no tokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "expected an object"),
        (b"{}", "expected ByteLevel; found None"),
        (b'{"decoder": {"type": "Metaspace"}}', "expected ByteLevel; found Metaspace"),
        (b'{"decoder": {"type": "ByteLevel"}}', "is not a tokenizer"),
    ],
)
def test_broken_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_model_in_a_good_file(tmp_path: Path) -> None:
    raw = json.loads(tokenizer_json())
    raw["model"]["merges"].append(["never", "seen"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
