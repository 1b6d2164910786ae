"""Text on both sides of the model: the tokenizer."""

from laguna_ref.chat.tokenizer import StreamDecoder, Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
