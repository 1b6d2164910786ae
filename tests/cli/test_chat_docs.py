"""docs/chat.md: its examples run, and print what the page says."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.meta.sources import ROOT

PAGE = (ROOT / "docs" / "chat.md").read_text("utf-8")
COMMANDS = re.findall(r"```console\n\$ laguna-ref (.*)\n([^`]*)```", PAGE)


def test_the_page_has_its_examples() -> None:
    assert len(COMMANDS) == 2


@pytest.mark.parametrize(("command", "printed"), COMMANDS, ids=lambda text: text[:30])
def test_commands_print_what_the_page_says(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, printed: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = run(*shlex.split(command))
    assert result.stdout + result.stderr == printed


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["prompt"].text.endswith("<assistant>\n<think>")
    assert names["tokenizer"].decode(names["prompt"].ids) == names["prompt"].text
