"""The README names commands that exist, and its Python runs; tests/docs runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

import laguna_ref
from laguna_ref.chat import Tokenizer
from laguna_ref.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_command_named_exists() -> None:
    named = set(re.findall(r"laguna-ref (?!COMMAND)([a-z]+)", README))
    assert named
    assert named <= set(COMMANDS)


def test_python_on_the_embedded_checkpoint() -> None:
    block = next(text for text in README.split("```python\n")[1:] if "laguna-tiny" in text)
    code = block.split("```")[0].split("config = ")[0]
    names: dict[str, object] = {"laguna_ref": laguna_ref, "Tokenizer": Tokenizer}
    exec(code, names)
    assert names["cache"]
