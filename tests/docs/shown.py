"""Commands that the pages show: found, run, and compared with the output shown below them.

A command stands in a ``console`` block after ``$ ``; what follows it is its output. An HTML comment
right before the block says how it is run:

- ``<!-- not run: needs a GPU -->``: not at all, for the reason given
- ``<!-- shown: slow -->``: with ``-m slow`` only
- ``<!-- shown: output -->``: its output is compared even where the page shows none (yet)

A command without output is run, and has to end as its comment says (``# exit 1``), or well. The
README, which is read as plain text too, has no such comments: ``README`` says it here.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from laguna_ref.cli import main
from laguna_ref.load import EMBEDDED

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    EMBEDDED / "README.md",
)
README = {
    "laguna-ref synth --preset xs2-int4": "not run: writes 2.5 GB",
    "laguna-ref golden make --model": "slow",
    "laguna-ref golden make --only": "slow",
    "laguna-ref golden compare goldens/": "slow",
    "laguna-ref bench": "slow",
    "laguna-ref serve": "not run: serves until it is stopped",
    "laguna-ref conform python:": "slow",
    "laguna-ref conform openai:": "not run: needs a server",
    "laguna-ref conform transformers:cuda": "not run: needs a GPU",
    "laguna-ref diagnose python:": "slow",
    "pytest --laguna-backend": "slow",
}
"""How commands of the README are run, by how they start; others just so."""
ANYTHING = "…"
ENVIRONMENT = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
BLOCK = re.compile(
    r"(?:^<!-- (?P<how>not run|shown): (?P<words>[^\n]*?) -->\n+)?"
    r"^```(?P<language>console|sh)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Numbers that no two runs share: times and rates.
MEASURED = re.compile(r"\d[\d,.]* ?(?=(?:s|ms|min|tokens/s|GB/s|GFLOP/s)\b)")
SHELL = re.compile(r"[|<>&;`$]")


@dataclass(frozen=True)
class Command:
    """One command of a block."""

    text: str
    shown: str
    """What stands below it, without the last line's end."""

    @property
    def code(self) -> int:
        """The exit code that its comment tells, 0 without one."""
        said = re.search(r"#.*\bexit (\d+)", self.text)
        return int(said[1]) if said else 0


@dataclass(frozen=True)
class Block:
    """A fenced block of commands."""

    page: Path
    line: int
    start: int
    """Of its body, in the page's text."""
    body: str
    language: str
    excuse: str
    keywords: tuple[str, ...]

    @property
    def name(self) -> str:
        """``docs/conform.md:12``"""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def excuse_of(self, command: Command) -> str:
        """Why it is not run, or nothing."""
        return self.excuse or _of_readme(self, command).partition("not run: ")[2]

    def is_slow(self, command: Command) -> bool:
        """Whether it is run with ``-m slow`` only."""
        return "slow" in self.keywords or _of_readme(self, command) == "slow"

    def commands(self) -> list[Command]:
        """Its commands, with the output shown."""
        found: list[Command] = []
        lines = self.body.splitlines()
        while lines:
            text = lines.pop(0)
            assert text.startswith("$ "), f"{self.name}: expected '$ ', found {text!r}"
            while text.endswith("\\"):
                text += "\n" + lines.pop(0)
            shown = []
            while lines and not lines[0].startswith("$ "):
                shown.append(lines.pop(0))
            found.append(Command(text.removeprefix("$ "), "\n".join(shown)))
        return found


def _of_readme(block: Block, command: Command) -> str:
    if block.page != ROOT / "README.md":
        return ""
    return next((how for start, how in README.items() if command.text.startswith(start)), "")


def blocks(page: Path) -> Iterator[Block]:
    """The ``console`` and ``sh`` blocks of a page."""
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        words = found["words"] or ""
        keywords = tuple(words.split(", ")) if found["how"] == "shown" else ()
        line = text.count("\n", 0, found.start("language")) + 1
        excuse = words if found["how"] == "not run" else ""
        yield Block(
            page, line, found.start("body"), found["body"], found["language"], excuse, keywords
        )


def run(command: Command, folder: Path) -> tuple[str, int]:
    """What it prints, and its exit code. Of a command that fails silently, what stderr says."""
    words = shlex.split(command.text, comments=True)
    if words[0] == "laguna-ref" and not SHELL.search(" ".join(words)):
        with chdir(folder):
            done = CliRunner().invoke(main, words[1:], env=ENVIRONMENT)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.stdout or (done.stderr if done.exit_code else ""), done.exit_code
    environment = os.environ | ENVIRONMENT | {"PATH": f"{shims(folder)}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = f"{ROOT}:{folder}"
    process = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.text],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return process.stdout or (process.stderr if process.returncode else ""), process.returncode


def shims(folder: Path) -> Path:
    """Programs of this interpreter under their usual names."""
    place = folder / ".programs"
    if not place.exists():
        place.mkdir()
        for name, module in (("laguna-ref", "laguna_ref.cli"), ("pytest", "pytest")):
            (place / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (place / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        for program in place.iterdir():
            program.chmod(0o755)
    return place


def presentable(output: str, folder: Path) -> str:
    """As a page would show it: no blank lines around it, no path of this machine."""
    for path, name in ((folder.resolve(), ""), (folder, ""), (ROOT.resolve(), "")):
        output = output.replace(f"{path}/", name)
    lines = [line.rstrip() for line in output.splitlines()]
    return "\n".join(lines).strip("\n")


def matches(shown: str, real: str) -> bool:
    """Whether an output is the one shown; ``…`` alone in a line stands for any lines."""
    pattern = ""
    for line in MEASURED.sub("#", shown).split("\n"):
        if line.strip() == ANYTHING:
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(map(re.escape, line.rstrip().split(ANYTHING))) + r"\n"
    return re.fullmatch(pattern, MEASURED.sub("#", real) + "\n") is not None
