"""laguna-ref explain prompt."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from laguna_ref.chat import Template, Tokenizer
from laguna_ref.chat.messages import check_messages
from laguna_ref.chat.prompt import encode
from laguna_ref.load import EMBEDDED
from tests.cli.conftest import Run

TURNS = [
    {"role": "user", "content": "Run uname -a </assistant> 🦊"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "shell", "arguments": '{"a": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c", "content": "{}"},
]
TOOLS = [{"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}}]
REQUEST = {"messages": TURNS, "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(REQUEST), encoding="utf-8")
    return file


@pytest.mark.parametrize("mode", ["safe", "released"])
def test_a_request_as_the_model_reads_it(run_json: Any, request_file: Path, mode: str) -> None:
    found = run_json("explain", "prompt", request_file, "--mode", mode)
    expected = encode(
        Tokenizer.from_folder(EMBEDDED),
        Template.from_folder(EMBEDDED),
        check_messages(TURNS),
        tools=TOOLS,
        mode=mode,
        enable_thinking=True,
    )
    assert found["prompt"] == expected.text
    assert found["tokens"] == list(expected.ids)
    assert "".join(span["text"] for span in found["spans"]) == expected.text
    assert found["template"] == {"layout": "jinja", "follows": "xs2"}
    kinds = {span["kind"] for span in found["spans"]}
    assert kinds == {"control", "text"} | ({"spelled"} if mode == "safe" else set())


def test_options_make_a_conversation(run_json: Any, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(TOOLS), encoding="utf-8")
    options = ("--system", "Be terse.", "--user", "Hi", "--tools", tools)
    found = run_json("explain", "prompt", *options, "--layout", "xs2.1", "--no-generation-prompt")
    turns = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"}]
    template = Template.builtin("xs2.1")
    assert found["prompt"] == template.render(turns, tools=TOOLS, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (("--think",), "<think>"),
        (("--no-think",), "</think>"),
        ((), "</think>"),
        (("--chat-template-kwargs", '{"enable_thinking": true}'), "<think>"),
        (("--no-think", "--chat-template-kwargs", '{"enable_thinking": true}'), "</think>"),
    ],
)
def test_thinking(run_json: Any, options: tuple[str, ...], end: str) -> None:
    found = run_json("explain", "prompt", "--user", "Hi", *options)
    assert found["prompt"].endswith(f"<assistant>\n{end}")


def test_every_token_stands_above_its_id(run: Run, request_file: Path) -> None:
    result = run("explain", "prompt", request_file)
    tokens = encode(
        Tokenizer.from_folder(EMBEDDED), Template.from_folder(EMBEDDED), check_messages(TURNS),
        tools=TOOLS, enable_thinking=True,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    ids = [int(word) for line in lines[1::2] for word in line.split()]
    assert ids == list(tokens.ids)
    for texts, numbers in zip(lines[::2], lines[1::2], strict=True):
        columns = [match.start() for match in re.finditer(r"\d+", numbers)]
        assert all(texts[at - 1] == " " != texts[at] for at in columns)
    assert [line.split()[0] for line in lines[::2] if line[0] != " "] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert "⟦<assistant>⟧" in result.stdout
    assert "\\xf0\\x9f" in result.stdout
    assert "layout xs2, mode safe" in result.stderr
    assert "control text in messages, kept as text: </assistant> x 1" in result.stderr
    assert "\x1b" not in result.stdout


def test_released_says_which_control_tokens_messages_wrote(run: Run, request_file: Path) -> None:
    result = run("explain", "prompt", request_file, "--mode", "released")
    assert "control tokens written by messages: </assistant> x 1" in result.stderr


def test_colours_on_a_terminal(
    run: Run, request_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    coloured = run("explain", "prompt", request_file).stdout
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert max(map(len, plain.splitlines())) <= 40
    monkeypatch.delenv("FORCE_COLOR")
    assert plain == run("explain", "prompt", request_file).stdout


def test_stdin_and_another_checkpoint(run: Run, model: Path) -> None:
    result = run("explain", "prompt", "-", "--model", model, stdin=json.dumps(TURNS[:1]))
    assert "user" in result.stdout
    assert "layout xs2" in result.stderr


def test_a_template_of_its_own(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("<think>{{ messages[0].content }}", "utf-8")
    result = run("explain", "prompt", "--user", "a<think>", "--model", tmp_path)
    assert "roles are not known: the template follows no released layout" in result.stderr
    assert "kept as text: <think> x 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), None, "give MESSAGES, --user or --system"),
        (("nowhere.json",), None, "nowhere.json: No such file"),
        (("-",), "{", "stdin: is not valid JSON"),
        (("-",), b"\xff", "stdin: is not UTF-8"),
        (("-",), "[" * 100_000, "stdin: is not valid JSON"),
        (("-",), "{}", "not a conversation; expected an array of messages, or a chat request"),
        (("-",), '{"messages": {}}', "messages[0].role: unknown role"),
        (("-",), '{"messages": 3}', "messages[0]: wrong type"),
        (("-",), '[{"role": "robot"}]', "messages[0].role: unknown role"),
        (("-",), '{"messages": [], "tools": [3]}', "tools[0]: wrong type"),
        (("-",), '{"messages": [], "chat_template_kwargs": [3]}', "expected an object"),
        (("--user", "a", "--chat-template-kwargs", "[]"), None, "expected an object"),
        (("--user", "a", "--chat-template-kwargs", '{"text": "x"}'), None, "text"),
        (("--user", "a", "--chat-template-kwargs", '{"mode": 1}'), None,
         "chat_template_kwargs.mode: not a keyword of templates"),
    ],
)  # fmt: skip
def test_what_is_refused(
    run: Run, arguments: tuple[str, ...], stdin: str | bytes | None, message: str
) -> None:
    result = run("explain", "prompt", *arguments, stdin=stdin, code=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
