"""laguna-ref chat without a terminal, and what it shows on one."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laguna_ref.chat import Tokenizer
from laguna_ref.chat.answer import Answer, CallDelta, Delta
from laguna_ref.cli.chat import Conversation
from laguna_ref.cli.chat_input import PlainReader, history_file, reader
from laguna_ref.cli.chat_screen import Screen
from laguna_ref.errors import InputError
from tests.cli.conftest import Run

TOOLS = [
    {
        "type": "function",
        "function": {"name": "shell", "parameters": {"properties": {"cmd": {"type": "string"}}}},
    }
]
CALL = "<tool_call>shell\n<arg_key>cmd</arg_key>\n<arg_value>uname -a</arg_value>\n</tool_call>\n"


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, roomy: Path) -> Callable[..., None]:
    """The tokens chosen, whatever the model computes: these answers, each up to id 24."""
    tokenizer = Tokenizer.from_folder(roomy)

    def script(*answers: str) -> None:
        import laguna_ref.generate  # noqa: F401  (the module; the package has a function so named)

        tokens = iter([token for text in answers for token in (*tokenizer.encode(text), 24)])
        module = sys.modules["laguna_ref.generate"]
        monkeypatch.setattr(module, "sample", lambda *_: next(tokens))

    return script


@pytest.fixture
def tools_file(tmp_path: Path) -> Path:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    return file


def arguments(model: Path, *more: object) -> tuple[object, ...]:
    """Without the long system message of the release, for which the small model has no room."""
    return (
        "chat",
        "--engine",
        "numpy",
        "--max-tokens",
        200,
        "--system",
        "S",
        *more,
        "--model",
        model,
    )


def test_each_line_is_a_message(run: Run, roomy: Path, says: Callable[..., None]) -> None:
    says("\nHello.\n", "\n  Bye.\n\n")
    result = run(*arguments(roomy), stdin="Hi\n\nBye\n")
    assert result.stdout == "Hello.\n  Bye.\n"
    assert result.stderr == ""


def test_thinking_stands_in_tags(run: Run, roomy: Path, says: Callable[..., None]) -> None:
    says("\nA greeting.\n</think>\nHello.\n", "\nHello.\n")
    result = run(*arguments(roomy, "--think"), stdin="Hi\n/think off\nHi")
    assert result.stdout == "<think>\nA greeting.\n</think>\nHello.\nHello.\n"
    assert result.stderr == "thinking is off\n"


def test_the_line_after_a_call_is_the_tools_answer(
    run: Run, roomy: Path, says: Callable[..., None], tools_file: Path
) -> None:
    says(f"\nI look.\n{CALL}{CALL}", "\nA Mac.\n", "\nYes.\n")
    result = run(
        *arguments(roomy, "--tools", tools_file), stdin='Run it\n{"stdout": "Darwin"}\n\nSure?\n'
    )
    line = '<tool_call> shell {"cmd": "uname -a"}\n'
    assert result.stdout == f"I look.\n{line}{line}A Mac.\nYes.\n"


def test_problems_and_other_ends_are_told(
    run: Run, roomy: Path, says: Callable[..., None], tools_file: Path
) -> None:
    says("<tool_call></tool_call>")
    found = run(*arguments(roomy, "--tools", tools_file), stdin="x")
    assert found.stdout == "<tool_call></tool_call>\n"
    assert found.stderr == "a <tool_call> without a name is content\n"
    says("abcdef")
    cut = run(*arguments(roomy, "--max-tokens", 2), stdin="x")
    assert cut.stderr == "[the most tokens allowed]\n"


def test_commands(run: Run, roomy: Path, tools_file: Path) -> None:
    lines = [
        "/think", "/think on", "/tools", f"/tools {tools_file}", "/tools off", "/system",
        "/system Be brief.", "/system off", "/reset", "/help", "/quit", "not reached",
    ]  # fmt: skip
    found = run(*arguments(roomy), stdin="\n".join(lines))
    assert found.stdout == ""
    said, _, usage = found.stderr.partition("/think on|off")
    assert said.splitlines() == [
        "thinking is off",
        "thinking is on",
        "tools: none",
        "tools: shell",
        "tools: none",
        "system message: 'S'",
        "system message: 'Be brief.'",
        "system message: the model's own",
        "the conversation begins anew",
    ]
    assert "/quit" in usage


def test_a_reset_forgets(run: Run, model: Path, says: Callable[..., None]) -> None:
    """As the small model's context is soon full, a conversation without end needs it."""
    says(*["\n" + "word " * 30 + "\n"] * 12)
    lines = ["x", "/reset"] * 6
    assert run(*arguments(model), stdin="\n".join(lines)).stdout.count("word") == 180
    says(*["\n" + "word " * 30 + "\n"] * 12)
    full = run(*arguments(model), stdin="x\n" * 12, code=2)
    assert "max_position_embeddings" in full.stderr


def test_a_message_may_begin_with_a_slash(
    run: Run, roomy: Path, says: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from laguna_ref.chat import session

    seen = []
    check = session.check_messages
    monkeypatch.setattr(session, "check_messages", lambda given: seen.extend(given) or check(given))
    says("a")
    run(*arguments(roomy), stdin="//think about it")
    assert seen[-1] == {"role": "user", "content": "/think about it"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "no such command; expected one of /help; found /nonsense"),
        ("/think maybe", "/think; expected on or off; found maybe"),
        ("/tools /nowhere", "/nowhere: cannot be read (No such file or directory)"),
    ],
)
def test_errors_end_what_nobody_types(run: Run, roomy: Path, line: str, message: str) -> None:
    found = run(*arguments(roomy), stdin=f"{line}\nx\n", code=2)
    assert found.stderr == f"Error: {message}\n"
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON in UTF-8"),
        ("5", "expected an array"),
        ('[{"type": "function"}]', "tools[0].function"),
        ('{"type": "retrieval"}', "tools[0].type"),
    ],
)
def test_bad_tools(run: Run, roomy: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    found = run(*arguments(roomy, "--tools", file), code=2)
    assert str(file) in found.stderr
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_bad_options(run: Run, roomy: Path, bare: Path) -> None:
    assert "top_p" in run(*arguments(roomy, "--top-p", 0), stdin="x", code=2).stderr
    assert "no tokenizer" in run(*arguments(bare), stdin="x", code=2).stderr


class _Typed:
    """Lines as somebody would type them."""

    interactive = True

    def __init__(self, *lines: str) -> None:
        self._lines = [*lines, None]

    def read(self, prompt: str, *, tool: bool = False) -> str | None:
        return self._lines.pop(0)


class _Interrupted:
    def begin(self, *messages: Any) -> Any:
        raise KeyboardInterrupt


class _Failing:
    def begin(self, *messages: Any) -> Any:
        raise InputError("too long")


@pytest.mark.parametrize(
    ("session", "said"), [(_Interrupted(), "[interrupted]\n"), (_Failing(), "Error: too long\n")]
)
def test_what_happens_before_an_answer_does_not_end_the_program(
    session: Any, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = _Typed("Hi", "Hi")
    Conversation(session, Screen(), lines).run()
    assert capfd.readouterr() == ("", said * 2)


# The screen.


class _Turn:
    finish_reason = "stop"
    answer = Answer(None, None, (), ())


def shown(monkeypatch: pytest.MonkeyPatch, *deltas: Delta, terminal: bool) -> str:
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    screen = Screen()
    with screen.answering():
        for delta in deltas:
            screen.show(delta)
    return out.getvalue()


def test_a_terminal_dims_thinking_and_boxes_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = [Delta(reasoning="\nI m"), Delta(reasoning="ust\n\n"), Delta(content="\nSo"),
              Delta(content=":\n"), Delta(content="\n1\n"), Delta(call=CallDelta(0, "shell", "")),
              Delta(call=CallDelta(0, None, '{"cmd": "ls'), ),
              Delta(call=CallDelta(0, None, '\\n-l", "n": 5}'))]  # fmt: skip
    text = shown(monkeypatch, *deltas, terminal=True)
    dimmed, _, rest = text.partition("\n")
    assert dimmed == "\x1b[2;3mI m\x1b[0m\x1b[2;3must\x1b[0m"
    lines = rest.splitlines()
    assert lines[:3] == ["So:", "", "1"]
    assert lines[3].startswith("╭─ call: shell")
    assert [line.strip("│ ") for line in lines[4:-1]] == ["cmd: ls", "-l", "n: 5"]
    assert lines[-1].startswith("╰")


def test_a_call_that_was_cut_off_is_shown_as_far_as_it_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deltas = [Delta(call=CallDelta(0, "f", "")), Delta(call=CallDelta(0, None, '{"a'))]
    assert '{"a' in shown(monkeypatch, *deltas, terminal=True)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_model_cannot_command_the_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    evil = "\x1b[2J\x9b1m\x07\r\u202e[bold]"
    deltas = [Delta(content=evil), Delta(call=CallDelta(0, evil, json.dumps({"a": evil})))]
    text = shown(monkeypatch, *deltas, terminal=terminal)
    assert not set(text.replace("\x1b[0m", "")) & set("\x1b\x9b\x07\r\u202e")
    assert "[bold]" in text


# The input.


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_the_extra_lines_are_read_plainly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal("Hi\r\n"))
    monkeypatch.setattr(sys, "stdout", _Terminal())
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    lines = reader(("/help",))
    assert isinstance(lines, PlainReader)
    assert lines.interactive
    assert lines.read("> ") == "Hi"
    assert lines.read("> ") is None
    assert "laguna-ref[chat]" in capfd.readouterr().err


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = history_file()
    assert file is not None
    if sys.platform == "linux":
        assert file == tmp_path / "laguna_ref" / "chat_history"
        assert file.stat().st_mode & 0o077 == 0
        assert file.parent.stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_written_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("platformdirs.user_state_path", lambda *_, **__: tmp_path / "file" / "x")
    assert history_file() is None
    assert "no history" in capfd.readouterr().err
