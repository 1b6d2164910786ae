"""Text to tokens and back: a thin layer over the ``tokenizers`` library.

Nothing is added to what the checkpoint's tokenizer.json says, and no beginning-of-text token
either: whoever builds the prompt writes it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import tokenizers

from laguna_ref.errors import CheckpointError, InputError
from laguna_ref.json_file import read_json

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """A byte-level BPE tokenizer."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a checkpoint; raises CheckpointError naming the file."""
        path = Path(folder) / TOKENIZER_FILE
        if not path.exists():
            raise CheckpointError("the checkpoint has no tokenizer", file=path)
        decoder = read_json(path, CheckpointError).get("decoder")
        kind = decoder.get("type") if isinstance(decoder, dict) else decoder
        if kind != "ByteLevel":
            raise CheckpointError(
                "not a byte-level tokenizer", file=path, key="decoder", expected="ByteLevel",
                found=str(kind),
            )  # fmt: skip
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as problem:  # the library raises bare exceptions
            raise CheckpointError(f"is not a tokenizer ({problem})", file=path) from problem

    @property
    def vocab_size(self) -> int:
        """Entries, added tokens included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Added tokens that are no text: ``〈|EOS|〉``, not ``</think>``."""
        added = self._inner.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    @cached_property
    def control(self) -> Mapping[int, str]:
        """Spelling of every added token by its id: text that ``encode`` takes for a token."""
        added = self._inner.get_added_tokens_decoder()
        return {number: token.content for number, token in sorted(added.items())}

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; names of special tokens in it become those tokens.

        Raises InputError for text that is not Unicode (a lone surrogate).
        """
        return list(self._encoding(text).ids)

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The same, and where in ``text`` each token's characters begin and end.

        Tokens that share a character's bytes have the same place.
        """
        encoding = self._encoding(text)
        return list(encoding.ids), list(encoding.offsets)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of the characters of ``text``: names of special tokens in it stay text.

        Raises CheckpointError where the vocabulary's merges alone would make a special token.
        """
        inner = self._inner
        if inner.normalizer is not None:
            text = inner.normalizer.normalize_str(text)
        splitter = inner.pre_tokenizer
        words = [(text, None)] if splitter is None else splitter.pre_tokenize_str(text)
        ids = [token.id for word, _ in words for token in inner.model.tokenize(word)]
        for token in ids:
            if token in self.control:
                raise CheckpointError(
                    "plain text makes a special token", file=TOKENIZER_FILE, found=repr(text)
                )
        return ids

    def _encoding(self, text: str) -> tokenizers.Encoding:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as problem:
            raise InputError(
                f"text is not Unicode (character {problem.start})",
                found=repr(text[problem.start]),
            ) from problem
        return self._inner.encode(text, add_special_tokens=False)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``, special ones included.

        Bytes that are no UTF-8 become U+FFFD; ids without an entry have no text.
        """
        return self._inner.decode([int(token) for token in tokens], skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for, perhaps part of a character only."""
        token = int(token)
        if token not in self._bytes:
            entry = self._inner.id_to_token(token)
            self._bytes[token] = b"" if entry is None else _entry_bytes(entry)
        return self._bytes[token]

    def stream(self) -> StreamDecoder:
        """A decoder for tokens that arrive one by one."""
        return StreamDecoder(self)


class StreamDecoder:
    """Turns tokens into text as they arrive; all pieces joined are what ``decode`` gives.

    A character whose bytes are spread over several tokens appears with the last of them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Replaces each maximal ill-formed part by one U+FFFD, as the library does.
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that is certain once ``token`` is known; often empty for part of a character."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed, else nothing."""
        return self._utf8.decode(b"", final=True)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: a character for each of the 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


def _entry_bytes(entry: str) -> bytes:
    """Bytes of a vocabulary entry, as the library's ByteLevel decoder reads it.

    An entry with any character outside the alphabet (an added token such as ``〈|EOS|〉``) is
    plain text.
    """
    if all(character in _BYTE_OF for character in entry):
        return bytes(_BYTE_OF[character] for character in entry)
    return entry.encode("utf-8")
