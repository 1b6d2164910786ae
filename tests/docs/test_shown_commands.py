"""Every command that README and docs show is run, and the output shown is the real one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import preparations, shown

BLOCKS = [block for page in shown.PAGES for block in shown.blocks(page)]
CELL = re.compile(r"^```\{code-cell\}.*?^```$", re.MULTILINE | re.DOTALL)
"""A walkthrough's cells are run by test_walkthroughs."""
README_SET_UP = 2
"""The README's first two ``sh`` blocks are run by .ci/run, in a fresh environment."""
EXCUSED = {
    "README.md": 4,
    "docs/backends.md": 8,
    "docs/conform.md": 4,
    "docs/diagnose.md": 2,
    "docs/full-size.md": 6,
    "docs/golden-format.md": 1,
    "docs/house.md": 1,
    "docs/index.md": 1,
    "docs/numerics.md": 5,
    "docs/performance.md": 6,
    "laguna_ref/data/laguna-tiny/README.md": 13,
}
"""Commands of a page that are not run; a further one is a decision, not an accident."""


def parameters() -> Iterator[object]:
    """Each block, and again those with slow commands."""
    for block in BLOCKS:
        if block.language == "console":
            commands = [each for each in block.commands() if not block.excuse_of(each)]
            if any(not block.is_slow(each) for each in commands):
                yield pytest.param(block, False, id=block.name)
            if any(block.is_slow(each) for each in commands):
                yield pytest.param(block, True, id=f"{block.name}-slow", marks=pytest.mark.slow)


@pytest.mark.parametrize(("block", "slow"), list(parameters()))
def test_its_output_is_the_real_one(block: shown.Block, slow: bool, tmp_path: Path) -> None:
    preparations.prepare(tmp_path)
    for command in block.commands():
        if block.excuse_of(command) or block.is_slow(command) > slow:
            continue
        output, code = shown.run(command, tmp_path)
        real = shown.presentable(output, tmp_path)
        assert code == command.code, f"{command.text}: exit {code}\n{real}"
        if command.shown or "output" in block.keywords:
            assert shown.matches(command.shown, real), (
                f"{block.name}: $ {command.text}\n--- shown\n{command.shown}\n--- real\n{real}\n"
                f"python tools/update_shown_outputs.py writes it"
            )


def test_what_is_not_run_is_counted() -> None:
    found = Counter(
        str(block.page.relative_to(shown.ROOT))
        for block in BLOCKS
        for command in (block.commands() if block.language == "console" else [])
        if block.excuse_of(command)
    )
    assert dict(found) == EXCUSED


def test_excuses_of_the_readme_are_needed() -> None:
    texts = [each.text for block in BLOCKS if block.page == shown.PAGES[0]
             for each in (block.commands() if block.language == "console" else [])]  # fmt: skip
    for start in shown.README:
        assert any(text.startswith(start) for text in texts), start


def test_set_up_is_run_elsewhere_or_excused() -> None:
    others = [block for block in BLOCKS if block.language == "sh" and not block.excuse]
    readme = [block.name for block in others if block.page.name == "README.md"]
    assert len(readme) == len(others) == README_SET_UP


@pytest.mark.parametrize("page", shown.PAGES, ids=lambda page: str(page.relative_to(shown.ROOT)))
def test_commands_stand_in_console_blocks(page: Path) -> None:
    """Elsewhere nothing would run them. A usage line has brackets or is in capitals."""
    text = CELL.sub("", shown.BLOCK.sub("", page.read_text("utf-8")))
    starts = ("laguna-ref ", "pip install", "pytest ", "python -m ")
    for line in text.splitlines():
        code = line.startswith("    ") or line.startswith(starts)
        usage = "[--" in line
        assert not (code and line.strip().startswith(starts)) or usage, line


def test_outputs_are_compared() -> None:
    """The tests of the tests."""
    assert shown.matches("a\n…\nd", "a\nb\nc\nd")
    assert shown.matches("decode: 7.4 tokens/s", "decode: 12.9 tokens/s")
    assert shown.matches("in … GB", "in 23.9 GB")
    assert not shown.matches("a\nb", "a\nc")
    assert not shown.matches("a", "a\nb")
    assert not shown.matches("", "a")
    assert shown.matches("", "")
