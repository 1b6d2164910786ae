"""From a chat request to the token ids of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from laguna_ref.chat.messages import check_messages, check_tools
from laguna_ref.chat.prompt import RESERVED, Span, encode
from laguna_ref.chat.reasoning import THINK_ID, thinking_open
from laguna_ref.server import errors
from laguna_ref.server.requests import ChatRequest, NamedTool
from laguna_ref.server.service import Service


@dataclass(frozen=True)
class ChatPrompt:
    """What the model reads, and how its answer is to be read."""

    ids: tuple[int, ...]
    thinking: bool
    """Whether the answer begins inside its thinking."""
    tools: list[dict[str, Any]] | None
    calls_allowed: bool
    keep_at: tuple[int, ...]
    """Where messages end: a conversation's next prompt begins the same up to there."""


def chat_prompt(service: Service, body: ChatRequest) -> ChatPrompt:
    """Renders and encodes; raises ApiError or InputError for what makes no prompt."""
    tokenizer = service.require_tokenizer("messages")
    assert service.template is not None
    tools = _checked_tools(body)
    allowed = _calls_allowed(body, tools)
    messages = check_messages(body.messages)
    if not messages:
        raise errors.bad_request("must not be empty", "messages")
    kwargs = _template_kwargs(service, body)
    prompt = encode(
        tokenizer, service.template, messages, tools=tools,
        mode=service.settings.prompt_mode, **kwargs,
    )  # fmt: skip
    return ChatPrompt(
        prompt.ids, _thinking(prompt.ids, kwargs), tools, allowed, _ends_of_messages(prompt.spans)
    )


def _thinking(ids: tuple[int, ...], kwargs: dict[str, Any]) -> bool:
    """A template that writes neither tag leaves it open only for who asked for thinking."""
    return thinking_open(ids) and (ids[-1] == THINK_ID or bool(kwargs.get("enable_thinking")))


def _template_kwargs(service: Service, body: ChatRequest) -> dict[str, Any]:
    """The server's defaults, and the request's over them."""
    given = {**service.settings.template_kwargs, **(body.chat_template_kwargs or {})}
    for name in given:
        if name in RESERVED:
            raise errors.bad_request(f"may not set {name}", "chat_template_kwargs")
    thinking = given.get("enable_thinking", False)
    if not isinstance(thinking, bool):
        # A template would take the text "false" for true.
        raise errors.bad_request("enable_thinking must be true or false", "chat_template_kwargs")
    return given


def _ends_of_messages(spans: Sequence[Span]) -> tuple[int, ...]:
    return tuple(after.start for span, after in pairwise(spans) if span.role != after.role)


def _checked_tools(body: ChatRequest) -> list[dict[str, Any]] | None:
    """As they were sent: the template shows them key by key."""
    tools = check_tools(body.tools)
    names = {tool["function"]["name"] for tool in tools or ()}
    if isinstance(body.tool_choice, NamedTool) and body.tool_choice.function.name not in names:
        raise errors.bad_request("names no function of tools", "tool_choice")
    return tools or None


def _calls_allowed(body: ChatRequest, tools: list[dict[str, Any]] | None) -> bool:
    """Whether calls in the answer count; raises ApiError for a choice that cannot be enforced."""
    if body.tool_choice in (None, "auto", "none"):
        return body.tool_choice != "none"
    if tools is None:
        raise errors.bad_request("needs tools", "tool_choice")
    raise errors.bad_request(
        "a call cannot be forced: this server changes no probabilities, so it takes none and auto",
        "tool_choice", "not_implemented",
    )  # fmt: skip
