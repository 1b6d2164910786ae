"""Where a command's tokens come from: a prompt, a file, stdin or token ids."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from laguna_ref.chat import Tokenizer
    from laguna_ref.model import Laguna

DEFAULT_PROMPT = 'def read_lines(path):\n    """Return the lines of a text file."""\n'


@dataclass(frozen=True)
class GivenPrompt:
    """What goes into the model, and the text it stands for."""

    tokens: list[int]
    text: str | None
    """None when token ids were given."""
    tokenizer: Tokenizer | None
    """None when the checkpoint has none and none was needed."""

    def text_of(self, token: int) -> str | None:
        """One token as text; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return self.tokenizer.token_bytes(token).decode("utf-8", errors="replace")

    def quoted(self, token: int) -> str:
        """The same for a table, quoted; part of a character as its bytes: ``b'\\xf0\\x9f'``."""
        if self.tokenizer is None:
            return ""
        data = self.tokenizer.token_bytes(token)
        try:
            return repr(data.decode("utf-8"))
        except UnicodeDecodeError:
            return repr(data)


def prompt_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds PROMPT, --prompt-file, --token-ids and --bos/--no-bos."""
    function = click.option(
        "--bos/--no-bos",
        default=True,
        show_default=True,
        help="Begin a text prompt with the beginning-of-text token, as documents in training "
        "do; never doubled, never added to --token-ids.",
    )(function)
    function = click.option(
        "--token-ids", metavar="IDS", help='Token ids instead of text: "2 70 71" or 2,70,71.'
    )(function)
    function = click.option(
        "--prompt-file",
        metavar="FILE",
        help="Read the prompt from a UTF-8 file, verbatim; - is stdin.",
    )(function)
    return click.argument("prompt", required=False)(function)


def read_prompt(
    model: Laguna,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
) -> GivenPrompt:
    """Tokens for the model; without any source, those of a small Python function's head.

    Raises InputError when two sources are given, when a text is not UTF-8, or when text is to
    be read or written and the checkpoint has no tokenizer.
    """
    given = [source for source in (prompt, prompt_file, token_ids) if source is not None]
    if len(given) > 1:
        raise InputError("give one of PROMPT, --prompt-file and --token-ids")
    if token_ids is not None:
        return GivenPrompt(parse_token_ids(token_ids), None, _tokenizer_if_any(model))
    if prompt_file is not None:
        prompt = _read_text(prompt_file)
    elif prompt == "-":
        prompt = _read_text("-")
    elif prompt is None:
        prompt = DEFAULT_PROMPT
    tokenizer = _tokenizer(model)
    tokens = tokenizer.encode(prompt)
    first = model.config.bos_token_id
    if bos and first is not None and tokens[:1] != [first]:
        tokens.insert(0, first)
    return GivenPrompt(tokens, prompt, tokenizer)


def parse_token_ids(text: str) -> list[int]:
    """Ids separated by spaces or commas, brackets allowed; raises InputError.

    >>> parse_token_ids("[2, 70, 71]")
    [2, 70, 71]
    """
    words = re.split(r"[\s,]+", text.strip().removeprefix("[").removesuffix("]").strip(", \n"))
    bad = [word for word in words if not re.fullmatch(r"\d{1,9}", word, re.ASCII)]
    if bad:
        raise InputError("not token ids", expected="integers such as 2,70,71", found=repr(bad[0]))
    return [int(word) for word in words]


def _tokenizer(model: Laguna) -> Tokenizer:
    from laguna_ref.chat import Tokenizer

    folder = model.checkpoint.path
    if not (folder / "tokenizer.json").exists():
        raise CheckpointError(
            "the checkpoint has no tokenizer; give --token-ids", file=folder / "tokenizer.json"
        )
    return Tokenizer.from_folder(folder)


def _tokenizer_if_any(model: Laguna) -> Tokenizer | None:
    has_one = (model.checkpoint.path / "tokenizer.json").exists()
    return _tokenizer(model) if has_one else None


def _read_text(file: str) -> str:
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(
            f"prompt is not UTF-8 (byte {problem.start})", file="stdin" if file == "-" else file
        ) from problem
