"""laguna-ref chat on a real terminal (a pty): the line, its history, Ctrl-C, Ctrl-D."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no ptys")

PATIENCE = 300
"""Seconds; a start takes one or two where nothing else runs."""
PROMPT, TAKEN = "\x1b[?2004h", "\x1b[?2004l"
"""Pasting in brackets is switched on with a prompt, and off when its line is taken."""
CTRL_C, CTRL_D = "\x03", "\x04"

Chat = Callable[..., Any]


@pytest.fixture
def chat(roomy: Path, tmp_path: Path) -> Iterator[Chat]:
    started = []

    def start(*options: str) -> Any:
        program = ["-m", "laguna_ref.cli", "chat", "--engine", "numpy", "--system", "S"]
        environment = os.environ | {
            "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1",
        }  # fmt: skip
        child = pexpect.spawn(
            sys.executable, [*program, "--model", str(roomy), "--temperature", "1", *options],
            env=environment, timeout=PATIENCE, encoding="utf-8", codec_errors="replace",
        )  # fmt: skip
        started.append(child)
        child.expect_exact("/help for help")
        child.expect_exact(PROMPT)
        return child

    yield start
    for child in started:
        child.close(force=True)


def ends_well(child: Any) -> None:
    child.send(CTRL_D)
    child.expect(pexpect.EOF)
    child.wait()
    assert (child.exitstatus, child.signalstatus) == (0, None)


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program(chat: Chat) -> None:
    child = chat("--max-tokens", "100000", "--stop-id", "99999")
    child.send("Hello\r")
    child.expect_exact(TAKEN)
    child.expect("[a-z].*[a-z]")  # the answer has begun
    child.send(CTRL_C)
    child.expect_exact("[interrupted]")
    child.expect_exact(PROMPT)
    child.send("/think\r")
    child.expect_exact("thinking is off")
    child.expect_exact(PROMPT)
    ends_well(child)


def test_ctrl_c_at_the_prompt_only_says_how_to_end(chat: Chat) -> None:
    child = chat()
    child.send("half a line" + CTRL_C)
    child.expect_exact("Ctrl-D or /quit ends the conversation")
    child.expect_exact(PROMPT)
    child.send("/nonsense\r")
    child.expect_exact("Error: no such command")
    child.expect_exact(PROMPT)
    child.send("/quit\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_the_history_outlives_the_program(chat: Chat, tmp_path: Path) -> None:
    child = chat()
    child.send("/system Be brief.\r")
    child.expect_exact("system message: 'Be brief.'")
    child.expect_exact(PROMPT)
    ends_well(child)
    again = chat()
    again.send("\x1b[A\r")  # the arrow up
    again.expect_exact("system message: 'Be brief.'")
    again.expect_exact(PROMPT)
    ends_well(again)
    assert "/system Be brief." in (tmp_path / "laguna_ref" / "chat_history").read_text()
