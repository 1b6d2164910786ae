"""Text on both sides of the model: messages, the template, the tokenizer, the parser of answers."""

from laguna_ref.chat.answer import Answer, AnswerParser, Delta, parse, thinking_open
from laguna_ref.chat.template import Template
from laguna_ref.chat.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "Answer",
    "AnswerParser",
    "Delta",
    "StreamDecoder",
    "Template",
    "Tokenizer",
    "parse",
    "thinking_open",
]
