"""A byte-level BPE of the released layout in small: special tokens, bytes, a few merges."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 330
VISIBLE = {18: "<think>", 19: "</think>", 23: "<assistant>", 24: "</assistant>"}
NEWLINES = r"(?:\r?\n)+(?!\r?\n)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = "def read_lines(path):\n    return open(path).read().splitlines()\nüber 北京 🦊\n" * 3


@cache
def tokenizer_json() -> str:
    """tokenizer.json with the released ids 0 to 29 and 330 entries."""
    specials = [f"〈|SPECIAL_{number}|〉" for number in range(30)]
    specials[2] = "〈|EOS|〉"
    for number, content in VISIBLE.items():
        specials[number] = content
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(NEWLINES), "merged_with_next"),
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[
            AddedToken(content, normalized=False, special=number not in VISIBLE)
            for number, content in enumerate(specials)
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer.to_str()
