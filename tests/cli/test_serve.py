"""``laguna-ref serve``: what it refuses before it listens, and one that listens."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Run
from tests.server.serving import Running


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "needs a key"),
        (["--host", "0.0.0.0", "--api-key", " "], "must not be empty"),
        (["--max-model-len", "9000"], "at most 8192"),
        (["--max-model-len", "0"], "max-model-len"),
        (["--default-chat-template-kwargs", "{"], "not JSON"),
        (["--default-chat-template-kwargs", "[]"], "not a JSON object"),
        (["--default-chat-template-kwargs", '{"tools": []}'], "may not be set"),
        (["--default-chat-template-kwargs", '{"enable_thinking": "true"}'], "true or false"),
        (["--chat-template", "/no/such/file"], "cannot be read"),
        (["--reasoning-parser", "hermes"], "reasoning-parser"),
        (["--kv-cache-dtype-skip-layers", "0", "1", "39"], "indices 0 to 7"),
        (["/no/such/model"], "no/such/model"),
        (["--json"], "--json"),
    ],
)
def test_what_is_refused(run: Run, arguments: list[str], said: str) -> None:
    assert said in run("serve", *arguments, code=2).output


def test_a_port_in_use_is_told(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "cannot listen" in run("serve", "--port", port, code=2).output


def test_without_the_extra_it_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("laguna_ref.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "laguna-ref[serve]" in run("serve", code=2).output


def test_a_model_without_tokenizer_and_a_key_from_the_environment(bare: Path) -> None:
    running = Running(str(bare), env=os.environ | {"LAGUNA_API_KEY": "sesame"})
    try:
        body = {"prompt": [2, 5], "max_tokens": 2, "return_token_ids": True}
        assert httpx.post(f"{running.url}/completions", json=body).status_code == 401
        key = {"authorization": "Bearer sesame"}
        found = httpx.post(f"{running.url}/completions", json=body, headers=key).json()
        assert len(found["choices"][0]["token_ids"]) == 2
        assert found["model"] == str(bare)
        assert running.terminate() == 0
    finally:
        running.close()
    assert [entry["event"] for entry in running.log][-1] == "ended"
    assert "sesame" not in "".join(running.lines)
    answers = [entry for entry in running.log if entry["event"] == "request"]
    assert [entry["status"] for entry in answers] == [401, 200]
