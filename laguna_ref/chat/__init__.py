"""Text on both sides of the model: messages, the template, the tokenizer."""

from laguna_ref.chat.template import Template
from laguna_ref.chat.tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Template", "Tokenizer"]
