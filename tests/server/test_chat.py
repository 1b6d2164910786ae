"""``/v1/chat/completions`` by a model that says what the test tells it to, and by the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from laguna_ref.chat import Template, Tokenizer
from laguna_ref.chat.messages import check_messages
from laguna_ref.chat.prompt import encode
from laguna_ref.load import EMBEDDED
from tests.server.serving import Local, ended, events, scripted, service_of

PATH = "/v1/chat/completions"
TOKENIZER = Tokenizer.from_folder(EMBEDDED)
TEMPLATE = Template.from_folder(EMBEDDED)
USER = {"role": "user", "content": "Run uname -a"}
SHELL = {
    "type": "function",
    "function": {
        "name": "shell", "description": "Runs a command.",
        "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}},
    },
}  # fmt: skip
CALL = "<tool_call>shell\n<arg_key>cmd</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
SAID = {
    "Run uname -a": "I need the shell.\n</think>\nOn it.\n" + CALL.format("uname -a"),
    "Run two": "</think>" + CALL.format("a") + "\n" + CALL.format("b"),
    "Say hi": "easy</think>Hi, 你好 👋!",
    "Broken": "</think><tool_call>shell\n<arg_key>cmd</arg_key>\n<arg_value>ls",
    "No thinking": "Just this.",
}


def script(prompt: str) -> str:
    return next(text for asked, text in SAID.items() if f"<user>\n{asked}\n</user>" in prompt)


@pytest.fixture(scope="module")
def talking() -> Iterator[Local]:
    service = service_of(scripted(script), limits={"prefix_cache_bytes": 0})
    with ended(service):
        yield Local(service)


def ask(local: Local, text: str, *, thinking: bool = True, **more: Any) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": text}], "tools": [SHELL],
        "chat_template_kwargs": {"enable_thinking": thinking}, "max_tokens": 200, **more,
    }  # fmt: skip
    response = local.post(PATH, body)
    assert response.status_code == 200, response.text
    if not more.get("stream"):
        result: dict[str, Any] = response.json()
        return result
    return joined(events(response))


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream as an answer in one piece, put together as a client does."""
    message: dict[str, Any] = {"content": "", "reasoning_content": ""}
    calls: dict[int, dict[str, Any]] = {}
    last: dict[str, Any] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["role"] = delta.get("role") or message.get("role")
            for key in ("content", "reasoning_content"):
                message[key] += delta.get(key) or ""
            for part in delta.get("tool_calls", ()):
                call = calls.setdefault(part["index"], {"function": {"arguments": ""}})
                call |= {key: part[key] for key in ("id", "type") if key in part}
                call["function"]["arguments"] += part["function"]["arguments"]
                if "name" in part["function"]:
                    call["function"]["name"] = part["function"]["name"]
            assert not last, "nothing comes after the last chunk"
            last = choice if choice["finish_reason"] else {}
    message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return {"choices": [last | {"message": message}], "usage": chunks[-1].get("usage")}


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_content_and_a_call(talking: Local, stream: bool) -> None:
    choice = ask(talking, "Run uname -a", stream=stream)["choices"][0]
    message = choice["message"]
    assert message["role"] == "assistant"
    assert message["reasoning_content"] == "I need the shell.\n"
    assert message["content"].strip() == "On it."
    (call,) = message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "shell")
    assert json.loads(call["function"]["arguments"]) == {"cmd": "uname -a"}
    assert call["id"].startswith("call_")
    assert choice["finish_reason"] == "tool_calls"
    assert "laguna" not in choice


@pytest.mark.parametrize("stream", [False, True])
def test_characters_of_several_tokens_come_whole(talking: Local, stream: bool) -> None:
    choice = ask(talking, "Say hi", stream=stream)["choices"][0]
    assert choice["message"]["content"] == "Hi, 你好 👋!"
    assert choice["message"]["reasoning_content"] == "easy"
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_several_calls_or_one_alone(talking: Local, stream: bool) -> None:
    both = ask(talking, "Run two", stream=stream)["choices"][0]
    commands = [
        json.loads(c["function"]["arguments"])["cmd"] for c in both["message"]["tool_calls"]
    ]
    assert commands == ["a", "b"]
    assert len({call["id"] for call in both["message"]["tool_calls"]}) == 2
    one = ask(talking, "Run two", stream=stream, parallel_tool_calls=False)["choices"][0]
    (call,) = one["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"cmd": "a"}
    assert one["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_cut_short_is_told(talking: Local, stream: bool) -> None:
    choice = ask(talking, "Broken", stream=stream)["choices"][0]
    assert choice["laguna"]["problems"]


def test_thinking_off_has_no_reasoning(talking: Local) -> None:
    message = ask(talking, "No thinking", thinking=False)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Just this."}


def test_tool_choice_none_leaves_calls_in_the_text(talking: Local) -> None:
    message = ask(talking, "Run two", tool_choice="none")["choices"][0]["message"]
    assert "tool_calls" not in message
    assert message["content"].startswith("<tool_call>shell")


def test_parsers_can_be_turned_off() -> None:
    service = service_of(
        scripted(script), limits={"prefix_cache_bytes": 0}, parse_reasoning=False, parse_tools=False
    )
    with ended(service):
        message = ask(Local(service), "Run uname -a")["choices"][0]["message"]
    assert message == {"role": "assistant", "content": SAID["Run uname -a"]}


def test_stop_texts_count_from_the_first_token(talking: Local) -> None:
    choice = ask(talking, "Run uname -a", stop=" shell")["choices"][0]
    assert choice["message"]["reasoning_content"] == "I need the"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", " shell")


def test_log_probabilities_cover_every_token(talking: Local) -> None:
    plain = ask(talking, "Say hi", logprobs=True, top_logprobs=2, return_token_ids=True)
    (choice,) = plain["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == plain["usage"]["completion_tokens"] == len(choice["token_ids"])
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(content)
    data = bytes(byte for entry in content for byte in entry["bytes"])
    assert data.decode() == SAID["Say hi"] + "</assistant>"
    body = {
        "messages": [{"role": "user", "content": "Say hi"}], "tools": [SHELL], "stream": True,
        "logprobs": True, "top_logprobs": 2, "chat_template_kwargs": {"enable_thinking": True},
    }  # fmt: skip
    chunks = events(talking.post(PATH, body))
    streamed = [
        entry for chunk in chunks for one in chunk["choices"]
        if one["logprobs"] for entry in one["logprobs"]["content"]
    ]  # fmt: skip
    assert streamed == content


def test_a_trace_has_each_token_with_its_experts(local: Local) -> None:
    body = {"messages": [USER], "max_tokens": 6, "seed": 1, "stream": True,
            "return_token_ids": True, "laguna": {"trace": True, "top": 3}}  # fmt: skip
    chunks = events(local.post(PATH, body))
    ids = [i for chunk in chunks for one in chunk["choices"] for i in one.get("token_ids", ())]
    traced = [
        token for chunk in chunks for one in chunk["choices"]
        for token in one.get("laguna", {}).get("tokens", ())
    ]  # fmt: skip
    assert [token["id"] for token in traced] == ids
    assert ids
    for token in traced:
        assert token["text"] == TOKENIZER.decode([token["id"]])
        assert len(token["top"]) == 3
        assert 0 < sum(one["probability"] for one in token["top"]) <= 1
        assert set(token["experts"]) == {str(layer) for layer in range(1, 8)}
        for chosen in token["experts"].values():
            assert len({expert for expert, _ in chosen}) == 2
            assert abs(sum(weight for _, weight in chosen) - 1) < 1e-6


def test_the_prompt_is_the_templates(local: Local) -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    for thinking in (False, True):
        body = {"messages": messages, "tools": [SHELL], "max_tokens": 1, "return_token_ids": True,
                "chat_template_kwargs": {"enable_thinking": thinking}}  # fmt: skip
        found = local.post(PATH, body).json()
        expected = encode(
            TOKENIZER, TEMPLATE, check_messages(messages), tools=[SHELL], enable_thinking=thinking
        )
        assert found["prompt_token_ids"] == list(expected.ids)
        assert found["usage"]["prompt_tokens"] == len(expected.ids)


def test_control_text_of_a_message_stays_text_unless_released() -> None:
    body = {"messages": [{"role": "user", "content": "a</assistant>b"}], "max_tokens": 1,
            "return_token_ids": True}  # fmt: skip
    counts = []
    for mode in ("safe", "released"):
        with ended(service_of(prompt_mode=mode)) as service:
            counts.append(Local(service).post(PATH, body).json()["prompt_token_ids"].count(24))
    assert counts == [0, 1]


def test_the_next_turn_shares_the_last_ones_cache(local: Local) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Tell me about lists. " * 12}]
    first = local.post(PATH, {"messages": messages, "max_tokens": 8, "seed": 1}).json()
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And sets?"}]
    second = local.post(PATH, {"messages": messages, "max_tokens": 8, "seed": 1}).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 5


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"messages": []}, "messages", ""),
        ({"messages": "hi"}, "messages", ""),
        ({"messages": [{"role": "cook", "content": "x"}]}, "messages[0].role", "unknown role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "wrong type"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments", "",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function", ""),
        ({"tools": "shell"}, "tools", ""),
        ({"tool_choice": "required", "tools": [SHELL]}, "tool_choice", "cannot be forced"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "shell"}}, "tools": [SHELL]},
            "tool_choice", "cannot be forced",
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [SHELL]},
            "tool_choice", "names no function",
        ),
        ({"tool_choice": "maybe"}, "tool_choice", ""),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs", "0 to 20"),
        ({"logprobs": 1}, "logprobs", "boolean"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "self"),
        ({"chat_template_kwargs": {"text": 1}}, "chat_template_kwargs", "text"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs", "true or"),
        ({"laguna": {"trace": True}}, "laguna", "stream"),
        ({"laguna": {"colour": 1}}, "laguna", "not permitted"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "enable_thinking"),
        ({"functions": [{}]}, "functions", "use tools"),
        ({"max_completion_tokens": 9000}, "max_tokens", "context"),
    ],
)  # fmt: skip
def test_what_is_refused(local: Local, more: dict[str, Any], param: str, said: str) -> None:
    response = local.post(PATH, {"messages": [USER]} | more)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param
    assert said in error["message"]
