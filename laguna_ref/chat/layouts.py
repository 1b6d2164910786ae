"""The two released prompt layouts in plain Python: what the chat templates write, piece by piece.

Follows the ``chat_template.jinja`` of Laguna XS.2 (``xs2``: newlines inside the tags) and of
Laguna XS-2.1 (``xs21``: tags hug their content), as the copies in ollama's
``model/renderers/testdata`` have them. A tag is control text only where it is the name of a token
(``<assistant>``, ``<think>``, ``<tool_call>``, ``〈|EOS|〉``); ``<user>``, ``<system>``,
``<arg_key>`` and their like are ordinary text.

Messages have the template's shape: content a string, the arguments of a call a mapping; see
``laguna_ref.chat.messages``. What a piece takes from a message is told apart from what the layout
itself writes, because ``laguna_ref.chat.prompt`` lets only the latter become control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from laguna_ref.errors import TemplateError

BEGINNING = "〈|EOS|〉"
DEFAULT_SYSTEM = (
    "You are a helpful, conversationally-fluent assistant made by Poolside. "
    "You are here to be helpful to users through natural language conversations."
)
TOOLS_HEAD = (
    "### Tools\n\n"
    "You may call functions to assist with the user query.\n"
    "All available function signatures are listed below:\n"
    "<available_tools>\n"
)
THINK_FIRST = "Wrap your thinking in '<think>', '</think>' tags, followed by a function call. "
HOW_TO_CALL = (
    "For each function call, return an unescaped XML-like object with function name and arguments "
    "within '<tool_call>' and '</tool_call>' tags, like here:\n"
)
THINK_EXAMPLE = "<think> your thoughts here </think>\n"
CALL_EXAMPLE = (
    "<tool_call>function-name\n"
    "<arg_key>argument-key</arg_key>\n<arg_value>value-of-argument-key</arg_value>\n"
    "</tool_call>"
)

Message = Mapping[str, Any]
Layout = Callable[..., "Iterator[Piece]"]


class Piece(NamedTuple):
    """A run of the prompt, never split from what a newline or a tag next to it means."""

    text: str
    role: str | None
    """Whose block it stands in: system, user, assistant, tool; None for the beginning of text."""
    from_message: bool
    """Taken from a message or a tool, not written by the layout."""


def xs2(
    messages: Sequence[Message],
    /,
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
    render_assistant_messages_raw: bool = False,
    **_: Any,
) -> Iterator[Piece]:
    """Laguna XS.2. Other keywords are passed over, as a template does with names it never reads."""
    yield Piece(BEGINNING, None, False)
    yield from _xs2_header(_header_text(messages), tools, enable_thinking)
    for index, message in enumerate(messages):
        role, content = message.get("role"), _content(message)
        if role == "assistant" and render_assistant_messages_raw:
            yield from _xs2_raw(content, enable_thinking)
        elif role == "assistant":
            yield from _xs2_assistant(message, content)
        elif role == "system" and index == 0:
            continue  # stands in the header
        elif role in BLOCKS:
            tag = BLOCKS[role]
            yield Piece(f"<{tag}>\n", role, False)
            yield Piece(content, role, True)
            yield Piece(f"\n</{tag}>\n", role, False)
    if add_generation_prompt:
        yield Piece("<assistant>\n" + _opening(enable_thinking), "assistant", False)


BLOCKS = {"user": "user", "tool": "tool_response", "system": "system"}
"""The tag of each role whose block holds its content verbatim. Other roles are passed over."""


def _xs2_header(system: Piece, tools: Sequence[Any] | None, thinking: bool) -> Iterator[Piece]:
    """No block at all without a system text and without tools."""
    if not (system.text or tools):
        return
    yield Piece("<system>\n", "system", False)
    if system.text:
        yield Piece("\n", "system", False)
        yield system
    if tools:
        yield Piece("\n\n", "system", False)
        yield from _tool_list(tools)
        how = THINK_FIRST + HOW_TO_CALL + THINK_EXAMPLE if thinking else HOW_TO_CALL
        yield Piece("\n\n" + how + CALL_EXAMPLE, "system", False)
    yield Piece("\n</system>\n", "system", False)


def _xs2_assistant(message: Message, content: str) -> Iterator[Piece]:
    """A turn of the assistant; its thinking is kept in every turn, thinking on or off."""
    reasoning = _reasoning(message)
    if "</think>" in content:
        inside, content = split_thinking(content)
        reasoning = reasoning or inside
    if reasoning:
        yield Piece("<assistant>\n<think>\n", "assistant", False)
        yield Piece(reasoning.strip(), "assistant", True)
        yield Piece("\n</think>\n", "assistant", False)
    else:
        yield Piece("<assistant>\n</think>\n", "assistant", False)
    if content.strip():
        yield Piece(content.strip(), "assistant", True)
        yield Piece("\n", "assistant", False)
    for call in message.get("tool_calls") or ():
        yield from _call(call, newline="\n")
    yield Piece("</assistant>\n", "assistant", False)


def split_thinking(content: str) -> tuple[str, str]:
    """Thinking and answer of a content that holds ``</think>``, as the XS.2 template splits it.

    Thinking runs to the first ``</think>``, from the last ``<think>`` before it or else from the
    start; the answer follows the last ``</think>``. What is between the two is lost.

    >>> split_thinking("<think>a</think>b</think>\\nc")
    ('a', 'c')
    """
    thinking = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
    return thinking, content.split("</think>")[-1].lstrip("\n")


def _xs2_raw(content: str, thinking: bool) -> Iterator[Piece]:
    """A turn as the model wrote it, generation prompt and end added only where they are missing."""
    opening = _opening(thinking)
    yield Piece("<assistant>\n", "assistant", False)
    if not content.startswith(opening):
        yield Piece(opening, "assistant", False)
    yield Piece(content, "assistant", True)
    if not content.endswith(("</assistant>", "</assistant>\n")):
        yield Piece("\n</assistant>", "assistant", False)
    yield Piece("\n", "assistant", False)


def xs21(
    messages: Sequence[Message],
    /,
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
    **_: Any,
) -> Iterator[Piece]:
    """Laguna XS-2.1: no raw turns, no thinking read out of content."""
    yield Piece(BEGINNING, None, False)
    yield from _xs21_header(_header_text(messages), tools, enable_thinking)
    for index, message in enumerate(messages):
        role, content = message.get("role"), _content(message)
        if role == "assistant":
            yield from _xs21_assistant(message, content, enable_thinking)
        elif role == "system" and index == 0:
            continue
        elif role in BLOCKS:
            tag = BLOCKS[role]
            yield Piece(f"<{tag}>", role, False)
            yield Piece(content, role, True)
            yield Piece(f"</{tag}>\n", role, False)
    if add_generation_prompt:
        yield Piece("<assistant>" + _opening(enable_thinking), "assistant", False)


def _xs21_header(system: Piece, tools: Sequence[Any] | None, thinking: bool) -> Iterator[Piece]:
    """With thinking on the block is there even when nothing is in it."""
    if not (system.text or tools or thinking):
        return
    yield Piece("<system>", "system", False)
    yield system
    if tools:
        if system.text:
            yield Piece("\n\n", "system", False)
        yield from _tool_list(tools)
    yield Piece("</system>\n", "system", False)


def _xs21_assistant(message: Message, content: str, thinking: bool) -> Iterator[Piece]:
    """Thinking is written verbatim, and left out of every turn when thinking is off."""
    yield Piece("<assistant>" + _opening(thinking), "assistant", False)
    if thinking:
        yield Piece(_reasoning(message), "assistant", True)
        yield Piece("</think>", "assistant", False)
    yield Piece(content, "assistant", True)
    for call in message.get("tool_calls") or ():
        yield from _call(call, newline="")
    yield Piece("</assistant>\n", "assistant", False)


def _header_text(messages: Sequence[Message]) -> Piece:
    """The first system message, else the default; an empty piece when it is blank."""
    text, given = DEFAULT_SYSTEM, False
    if messages and messages[0].get("role") == "system":
        text, given = messages[0].get("content") or "", True
        if not isinstance(text, str):
            raise TemplateError(
                "wrong content", key="messages[0].content", expected="a string",
                found=type(text).__name__,
            )  # fmt: skip
    return Piece(text.rstrip(), "system", given)


def _tool_list(tools: Sequence[Any]) -> Iterator[Piece]:
    yield Piece(TOOLS_HEAD, "system", False)
    for tool in tools:
        yield Piece(as_json(tool), "system", True)
        yield Piece("\n", "system", False)
    yield Piece("</available_tools>", "system", False)


def _call(call: Message, *, newline: str) -> Iterator[Piece]:
    """A tool call; a string argument stands as it is, any other as JSON."""
    name, arguments = _called(call)
    yield Piece("<tool_call>", "assistant", False)
    yield Piece(name, "assistant", True)
    yield Piece(newline, "assistant", False)
    for key, value in arguments.items():
        yield Piece("<arg_key>", "assistant", False)
        yield Piece(str(key), "assistant", True)
        yield Piece(f"</arg_key>{newline}<arg_value>", "assistant", False)
        yield Piece(value if isinstance(value, str) else as_json(value), "assistant", True)
        yield Piece(f"</arg_value>{newline}", "assistant", False)
    yield Piece("</tool_call>" + newline, "assistant", False)


def _called(call: Message) -> tuple[str, Mapping[str, Any]]:
    function = call.get("function")
    if isinstance(function, Mapping):
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str) and isinstance(arguments, Mapping):
            return name, arguments
    raise TemplateError(
        "wrong tool call", expected="a function with a name and a mapping of arguments",
        found=repr(call),
    )  # fmt: skip


def _content(message: Message) -> str:
    """Anything that is no string counts as nothing, as in the released templates."""
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _reasoning(message: Message) -> str:
    """``reasoning`` (vLLM's name) before ``reasoning_content``; the first that is a string."""
    given = (message.get("reasoning"), message.get("reasoning_content"))
    return next((text for text in given if isinstance(text, str)), "")


def _opening(thinking: bool) -> str:
    return "<think>" if thinking else "</think>"


def as_json(value: Any) -> str:
    """What Transformers' ``tojson`` makes of a value: no escapes but JSON's own."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise TemplateError(f"a value that JSON cannot hold ({problem})") from problem


LAYOUTS: dict[str, Layout] = {"xs2": xs2, "xs2.1": xs21}
