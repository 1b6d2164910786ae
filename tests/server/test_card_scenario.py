"""The model card's scenario with the real ``openai`` package, over a real socket.

A system message that names a shell tool, "Run uname -a", one function ``shell(cmd: string)``,
streamed; then the assistant's message back with thinking and calls, and the tool's response.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.serving import Running, ended, listening, scripted, service_of
from tests.server.test_chat import CALL, SHELL

TRAINED_ON_DIALOGUES = False
"""Set it once the embedded laguna-tiny is the one trained on dialogues: the last test then runs."""

RECIPE = [
    "--kv-cache-dtype-skip-layers", *map(str, range(8)), "--max-model-len", "2048",
    "--reasoning-parser", "poolside_v1", "--tool-call-parser", "poolside_v1",
    "--enable-auto-tool-choice", "--default-chat-template-kwargs", '{"enable_thinking": true}',
    "--served-model-name", "poolside/Laguna-XS.2", "--trust-remote-code",
]  # fmt: skip
NAME = "poolside/Laguna-XS.2"
SYSTEM = {"role": "system", "content": "You can run commands with the tool `shell`."}
USER = {"role": "user", "content": "Run uname -a"}
RESULT = json.dumps({"stdout": "Linux box 6.1 x86_64", "exit_code": "0"})
UNTHINKING = {"chat_template_kwargs": {"enable_thinking": False}}


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="EMPTY", max_retries=0, timeout=120)


def streamed(client: openai.OpenAI, messages: list[Any], **more: Any) -> dict[str, Any]:
    """What the card's client gathers from the deltas, as the message to send back."""
    thinking, content, calls, finish = "", "", {}, None
    stream = client.chat.completions.create(
        model=NAME,
        messages=messages,
        tools=[SHELL],
        stream=True,
        **more,  # type: ignore[list-item]
    )
    for chunk in stream:
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            thinking += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            for part in choice.delta.tool_calls or ():
                assert part.function is not None
                call = calls.setdefault(part.index, {"name": "", "arguments": ""})
                call["id"] = part.id or call.get("id")
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
    message: dict[str, Any] = {"role": "assistant", "content": content, "finish": finish}
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = [
            {"id": call["id"], "type": "function",
             "function": {"name": call["name"], "arguments": call["arguments"]}}
            for _, call in sorted(calls.items())
        ]  # fmt: skip
    return message


def round_trip(client: openai.OpenAI, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first answer, which must be a call of the shell, and the one to its result."""
    messages: list[Any] = [SYSTEM, USER]
    first = streamed(client, messages, **more)
    (call,) = first["tool_calls"]
    assert call["function"]["name"] == "shell"
    assert set(json.loads(call["function"]["arguments"])) == {"cmd"}
    assert first["finish"] == "tool_calls"
    sent = {key: value for key, value in first.items() if key != "finish"}
    messages += [sent, {"role": "tool", "tool_call_id": call["id"], "content": RESULT}]
    return first, streamed(client, messages, **more)


def script(prompt: str) -> str:
    """What a well-trained model says."""
    thinking = prompt.endswith("<think>")
    if f"<tool_response>\n{RESULT}\n</tool_response>" in prompt:
        assert "<think>\nThe user wants uname.\n</think>\nRunning it.\n" + CALL.format(
            "uname -a"
        ) in prompt or not thinking  # fmt: skip
        return "\nDone.\n</think>\nIt is Linux." if thinking else "\nIt is Linux."
    said = "\nRunning it.\n" + CALL.format("uname -a")
    return "\nThe user wants uname.\n</think>" + said if thinking else said


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    service = service_of(
        scripted(script), limits={"prefix_cache_bytes": 0}, names=(NAME,),
        template_kwargs={"enable_thinking": True},
    )  # fmt: skip
    with ended(service), listening(service) as url:
        yield f"{url}/v1"


def test_thinking_a_call_and_the_answer_to_its_result(url: str) -> None:
    first, second = round_trip(client_of(url))
    assert first["reasoning_content"].strip() == "The user wants uname."
    assert first["content"].strip() == "Running it."
    assert json.loads(first["tool_calls"][0]["function"]["arguments"]) == {"cmd": "uname -a"}
    assert second["reasoning_content"].strip() == "Done."
    assert second["content"].strip() == "It is Linux."
    assert (second["finish"], "tool_calls" in second) == ("stop", False)


def test_the_same_without_thinking(url: str) -> None:
    first, second = round_trip(client_of(url), extra_body=UNTHINKING)
    assert "reasoning_content" not in first
    assert "reasoning_content" not in second
    assert second["content"].strip() == "It is Linux."


def test_not_streamed_and_typed_by_the_package(url: str) -> None:
    client = client_of(url)
    assert [model.id for model in client.models.list()] == [NAME]
    answer = client.chat.completions.create(
        model=NAME,
        messages=[SYSTEM, USER],
        tools=[SHELL],
        seed=3,
        logprobs=True,
        top_logprobs=2,  # type: ignore[list-item]
    )
    message = answer.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.name == "shell"  # type: ignore[union-attr]
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"].strip() == "The user wants uname."
    assert answer.usage is not None
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content or ()) == answer.usage.completion_tokens
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=[USER])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="cannot be forced"):
        client.chat.completions.create(
            model=NAME,
            messages=[USER],
            tools=[SHELL],
            tool_choice="required",  # type: ignore[list-item]
        )


@pytest.fixture(scope="module")
def recipe() -> Iterator[Running]:
    """A process of its own, started as the recipe says."""
    running = Running(*RECIPE)
    yield running
    try:
        assert running.terminate() == 0
    finally:
        running.close()


def test_the_recipe_serves_the_embedded_model(recipe: Running) -> None:
    client = client_of(recipe.url)
    more = {"max_tokens": 24, "seed": 1}
    thoughtful = streamed(client, [SYSTEM, USER], **more)
    assert thoughtful["reasoning_content"]
    assert thoughtful == streamed(client, [SYSTEM, USER], **more)
    plain = streamed(client, [SYSTEM, USER], extra_body=UNTHINKING, **more)
    assert "reasoning_content" not in plain
    (model,) = client.models.list()
    assert (model.id, model.model_extra and model.model_extra["max_model_len"]) == (NAME, 2048)


@pytest.mark.skipif(not TRAINED_ON_DIALOGUES, reason="the embedded model knows no dialogues yet")
def test_the_card_by_the_embedded_model(recipe: Running) -> None:
    client = client_of(recipe.url)
    first, second = round_trip(client, temperature=0)
    assert first["reasoning_content"].strip()
    assert json.loads(first["tool_calls"][0]["function"]["arguments"]) == {"cmd": "uname -a"}
    assert second["content"].strip()
    _, plain = round_trip(client, temperature=0, extra_body=UNTHINKING)
    assert "reasoning_content" not in plain
    assert plain["content"].strip()
