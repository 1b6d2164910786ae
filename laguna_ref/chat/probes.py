"""Conversations that tell which released layout a template writes.

Each rule of the layouts is met at least once: a template that renders all of them as a layout
does is taken to follow it, and then each conversation's text is compared too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laguna_ref.errors import TemplateError

if TYPE_CHECKING:
    from laguna_ref.chat.template import Template

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"é": [1, None]}}}]
CALL = {"function": {"name": "f", "arguments": {"s": " x ", "n": 1.5, "deep": {"é": [True]}}}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": " a\n"},
    {"role": "assistant", "content": " plain\n"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "{}"},
    {"role": "assistant", "reasoning": " r\n", "reasoning_content": "other", "content": "b"},
    {"role": "assistant", "reasoning_content": "\n", "content": "c"},
    {"role": "assistant", "content": "\nlost<think>\nr\n</think>\nlost</think>\n\nd"},
    {"role": "assistant", "content": "r only</think>"},
    {"role": "assistant", "reasoning": "given", "content": "<think>lost</think>e"},
    {"role": "assistant", "content": "<think>unclosed"},
    {"role": "system", "content": " later\n"},
    {"role": "user", "content": None},
]
RAW: list[dict[str, Any]] = [
    {"role": "assistant", "content": f"{begin}raw{end}", "reasoning": "r", "tool_calls": [CALL]}
    for begin in ("", "<think>", "</think>")
    for end in ("", "</assistant>", "</assistant>\n")
]
BEGINNINGS: list[list[dict[str, Any]]] = [
    [],
    [{"role": "system", "content": "Be terse. \n"}],
    [{"role": "system", "content": " "}],
]


def writes_the_same(template: Template, other: Template) -> bool:
    """Whether both render every probe to the same text; one that fails does not."""
    try:
        return all(
            template.render([*beginning, *turns], **settings)
            == other.render([*beginning, *turns], **settings)
            for beginning in BEGINNINGS
            for turns in ([], TURNS, RAW)
            for settings in _settings()
        )
    except TemplateError:
        return False


def _settings() -> list[dict[str, Any]]:
    return [
        {
            "tools": tools,
            "enable_thinking": thinking,
            "add_generation_prompt": thinking or tools is None,
            "render_assistant_messages_raw": raw,
        }
        for tools in (None, TOOLS)
        for thinking in (False, True)
        for raw in (False, True)
    ]
