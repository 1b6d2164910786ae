"""Text on both sides of the model: the tokenizer, and the parser of answers."""

from laguna_ref.chat.answer import Answer, AnswerParser, Delta, parse, thinking_open
from laguna_ref.chat.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "Answer",
    "AnswerParser",
    "Delta",
    "StreamDecoder",
    "Tokenizer",
    "parse",
    "thinking_open",
]
