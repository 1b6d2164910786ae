"""Trains the byte-level BPE tokenizer in the released model's layout, and encodes the corpus."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from laguna_tiny.corpus import SOURCES, Document, read

VOCAB_SIZE = 3072
END_OF_TEXT = 2  # 〈|EOS|〉 is also the beginning-of-text token

NEWLINES = r"(?:\r?\n)+(?!\r?\n)"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VISIBLE = {18: "<think>", 19: "</think>", 23: "<assistant>", 24: "</assistant>"} | {
    25: "<tool_call>",
    26: "</tool_call>",
}


def special_tokens() -> list[AddedToken]:
    """The released model's ids 0 to 69, in order."""
    bracketed = "UNK CODE_START EOS CODE_END META_START META_END FIM_MIDDLE FIM_SUFFIX SEP PAD CLS"
    contents = [f"〈|{name}|〉" for name in f"{bracketed} FIM_START MASK".split()]
    contents += ["|◊|", "〈|", "|〉", "〈|/", "/|〉", VISIBLE[18], VISIBLE[19]]
    contents += [f"〈|SPECIAL_{number}|〉" for number in (1, 2, 3)]
    contents += [VISIBLE[number] for number in (23, 24, 25, 26)]
    contents += [f"〈|SPECIAL_{number}|〉" for number in range(8, 51)]
    return [
        AddedToken(content, normalized=False, special=number not in VISIBLE)
        for number, content in enumerate(contents)
    ]


def train(texts: Iterator[str]) -> Tokenizer:
    """A tokenizer of VOCAB_SIZE entries: special tokens, the 256 bytes, merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(NEWLINES), "merged_with_next"),
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = special_tokens()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer marks every one of them special; six must survive skip_special_tokens.
    saved = json.loads(tokenizer.to_str())
    for number, entry in enumerate(saved["added_tokens"]):
        if entry["id"] != number or entry["content"] != specials[number].content:
            raise AssertionError(f"special token {number} became {entry}")
        entry["special"] = number not in VISIBLE
    tokenizer = Tokenizer.from_str(json.dumps(saved))
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise AssertionError(f"vocabulary of {tokenizer.get_vocab_size()}, not {VOCAB_SIZE}")
    return tokenizer


def published(folder: Path) -> Tokenizer:
    """A folder's own tokenizer, byte for byte when it is saved."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def sample_texts(work: Path, limit: int, seed: int) -> Iterator[str]:
    """Random training documents, about `limit` bytes of them."""
    texts = [document.text for document in read(work, "train") if document.text]
    random.Random(seed).shuffle(texts)
    for text in texts:
        limit -= len(text)
        if limit < 0:
            return
        yield text


def encode_corpus(tokenizer: Tokenizer, work: Path, split: str) -> None:
    """Writes <split>.npz: all ids, where each document starts, its source and its bytes."""
    documents: list[Document] = list(read(work, split))
    names = [source.name for source in SOURCES]
    ids: list[np.ndarray] = []
    for start in range(0, len(documents), 256):
        batch = documents[start : start + 256]
        encodings = iter(tokenizer.encode_batch([d.text for d in batch if d.text is not None]))
        for document in batch:
            body = next(encodings).ids if document.ids is None else document.ids
            ids.append(np.array([END_OF_TEXT, *body], dtype=np.uint16))
    np.savez(
        work / f"{split}.npz",
        ids=np.concatenate(ids),
        starts=np.cumsum([0, *(len(part) for part in ids)]),
        source=np.array([names.index(document.source) for document in documents]),
        bytes=np.array([len((document.text or "").encode()) for document in documents]),
        names=np.array(names),
    )
