"""Errors: one line each, naming the place, what was found and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class LagunaError(Exception):
    """Base of every error raised for bad input.

    ``str(error)`` is one line. The parts stay available as attributes, because
    ``--json`` prints them separately.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        tensor: str | None = None,
        key: str | None = None,
        expected: Any = None,
        found: Any = None,
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.key = key
        self.expected = expected
        self.found = found
        super().__init__(str(self))

    def __str__(self) -> str:
        where = [part for part in (self.file, self.tensor, self.key) if part]
        line = ": ".join([*where, self.message])
        if self.expected is not None:
            line += f"; expected {_short(self.expected)}"
        if self.found is not None:
            line += f"; found {_short(self.found)}"
        # A lone surrogate, which JSON can spell, would make a line that cannot be printed.
        return " ".join(line.split()).encode("utf-8", "backslashreplace").decode()


class ConfigError(LagunaError):
    """A config.json that contradicts itself or asks for something not implemented."""


class UnknownConfigKeyError(ConfigError):
    """A key of config.json that this package does not know and so cannot honour."""


class CheckpointError(LagunaError):
    """A checkpoint whose files, headers or tensors are not what its config says."""


class UnsupportedFormatError(CheckpointError):
    """A weight format that is known by name but not implemented."""


class InputError(LagunaError):
    """Tokens, positions or options that the model cannot accept."""


class TemplateError(InputError):
    """A chat template that cannot be read, or a conversation that it cannot render."""


class CacheError(LagunaError):
    """A key/value cache used in a way its contents do not allow."""


class NonFiniteError(LagunaError):
    """A NaN or an infinity where the forward pass must not have one."""


def _short(value: Any, limit: int = 160) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
