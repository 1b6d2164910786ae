"""Tool calls in an output, whole or as it streams.

A call is ``<tool_call>`` NAME (``<arg_key>`` KEY ``</arg_key>`` ``<arg_value>`` VALUE
``</arg_value>``)* ``</tool_call>``, with white space anywhere between: XS.2 has newlines there,
XS-2.1 nothing. NAME is one line without ``<``, and like KEY it is stripped.

Follows vLLM 0.32.0, ``vllm/tool_parsers/poolside_v1_tool_parser.py``. It has two parsers there, by
regular expressions for a whole output and by hand for a stream, which agree on well-formed calls.
On others they differ, and we have one answer for both ways:

- A value ends at ``</arg_value>`` only (vLLM's stream); tags in it are text. Its whole parser cuts
  a call at the first ``</tool_call>``, be it inside a value.
- White space alone before a call is no content (whole); the stream sends it.
- Text after a call is content (stream); the whole parser drops it. White space alone is dropped.
- ``<tool_call>`` with no name, with ``<`` in the name, or with text after the name that is no
  argument, is content (whole); the stream drops the first, keeps the second as a name and skips
  the text in the third.
- A key that comes twice has its first value (stream); whole: its last.
- A key without a value is left out (whole, and SGLang's ``poolside_v1_detector.py``); the stream
  gives it the next value there is.
- A call that the output ends within is closed as valid JSON, its last value cut short if it is a
  string, else left out (stream); the whole parser hands its text out as content.

Both agree on skipping text between arguments and on keeping names that are no tool of the
request. In one thing we leave vLLM: ``<tool_call>`` inside an unfinished call closes that call
and begins another, where vLLM gives the arguments of the second to the first. All of this is
told in ``problems``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from laguna_ref.chat.calls import Arguments, Head
from laguna_ref.chat.deltas import CallDelta, Delta
from laguna_ref.chat.tags import (
    CALL,
    CALL_END,
    KEY,
    KEY_END,
    VALUE,
    VALUE_END,
    Excerpt,
    Problems,
    Tags,
    quote,
)
from laguna_ref.chat.values import Schemas, escape, to_json


@dataclass(frozen=True)
class _State:
    """What the parser looks for, and does with text and with a tag.

    ``on_tag`` returns False if the tag is to be read again, in the state it has led to.
    """

    tags: Tags
    on_text: Callable[[str], None]
    on_tag: Callable[[str], bool]


class ToolCallParser:
    """Splits text into content and calls; always in one of six states."""

    def __init__(self, tools: Iterable[Mapping[str, Any]] | None, problems: Problems) -> None:
        in_call = Tags(CALL, CALL_END, KEY, KEY_END, VALUE, VALUE_END)
        in_head = Tags(CALL, CALL_END, KEY, any_other=True)
        self._in_content = _State(Tags(CALL), self._content_text, self._content_tag)
        self._in_head = _State(in_head, self._head_text, self._head_tag)
        self._between = _State(in_call, self._between_text, self._between_tag)
        self._in_key = _State(in_call, self._key_text, self._key_tag)
        self._after_key = _State(in_call, self._between_text, self._after_key_tag)
        self._in_value = _State(Tags(VALUE_END), self._value_text, self._value_tag)
        self._state = self._in_content

        self._schemas = Schemas(tools)
        self._problems = problems
        self._out: list[Delta] = []
        self._pending = ""
        self._blanks: list[str] | None = []  # content only if text follows; None while text has
        self._index = -1  # of the last call
        self._head = Head()
        self._arguments = Arguments()
        self._name = self._key = ""
        self._parts: list[str] = []  # of a key, or of a value that does not stream
        self._streams = False  # a string value goes out as it comes
        self._junk = Excerpt()  # text in a call that is neither key nor value

    def push(self, text: str) -> list[Delta]:
        """What is certain once ``text`` is known."""
        return self._run(text, final=False)

    def finish(self) -> list[Delta]:
        """What was held back, and the end of a call that had none."""
        out = self._run("", final=True)
        if self._state is self._in_head:
            self._reject()
        elif self._state is not self._in_content:
            self._cut_short()
        if self._blanks and self._index < 0:
            self._out.append(Delta(content="".join(self._blanks)))
        return out

    def _run(self, text: str, *, final: bool) -> list[Delta]:
        self._out = []
        text, start = self._pending + text, 0
        while True:
            state = self._state
            end, tag = state.tags.find(text, start, final=final)
            if end > start:
                state.on_text(text[start:end])
                start = end
            if self._state is not state:
                continue
            if tag is None:
                self._pending = text[end:]
                return self._out
            if state.on_tag(tag):
                start = end + len(tag)

    # Content, and what may become a call.

    def _content_text(self, text: str) -> None:
        if self._blanks is not None:
            self._blanks.append(text)
            if not text.strip():
                return
            if self._index >= 0:
                self._problems.add("text after a tool call is content")
            text, self._blanks = "".join(self._blanks), None
        self._out.append(Delta(content=text))

    def _content_tag(self, _: str) -> bool:
        self._head, self._state = Head(), self._in_head
        return True

    def _head_text(self, text: str) -> None:
        if not self._head.take(text):
            self._reject()

    def _head_tag(self, tag: str) -> bool:
        if tag in (KEY, CALL_END) and self._head.name:
            self._begin(self._head.name)
        else:
            self._reject()
        return False

    def _reject(self) -> None:
        name = self._head.name
        self._problems.add(
            f"no {KEY} or {CALL_END} after {CALL}{quote(name)}: content"
            if name
            else f"a {CALL} without a name is content"
        )
        self._state = self._in_content
        self._content_text(self._head.raw)

    # A call, from its name to its end.

    def _begin(self, name: str) -> None:
        self._state, self._blanks = self._between, []
        self._index += 1
        self._name, self._arguments = name, Arguments()
        if not self._schemas.knows(name):
            self._problem("no tool of the request")
        self._out.append(Delta(call=CallDelta(self._index, name, "")))

    def _emit(self, fragment: str) -> None:
        self._out.append(Delta(call=CallDelta(self._index, None, fragment)))

    def _problem(self, line: str) -> None:
        self._problems.add(f"call {self._index} ({quote(self._name)}): {line}")

    def _close(self) -> None:
        self._emit(self._arguments.close())
        self._state = self._in_content

    def _cut_short(self) -> None:
        """The output ends within a call."""
        self._note_junk()
        if self._state is self._in_key:
            self._problem(f"the key {quote(self._whole())} was cut short and is left out")
        elif self._state is self._after_key:
            self._problem(f"no value for {quote(self._key)}, left out")
        elif self._state is self._in_value and self._streams:
            self._problem(f"the value of {quote(self._key)} was cut short")
            self._emit('"')
        elif self._state is self._in_value:
            self._problem(
                f"the value of {quote(self._key)} was cut short and is left out: "
                f"{quote(self._whole())}"
            )
        self._problem(f"no {CALL_END}")
        self._close()

    def _between_text(self, text: str) -> None:
        self._junk.add(text)

    def _between_tag(self, tag: str) -> bool:
        if tag in (KEY_END, VALUE, VALUE_END):
            self._junk.add(tag)
            return True
        self._note_junk()
        if tag == KEY:
            self._parts, self._state = [], self._in_key
            return True
        if tag == CALL:
            self._problem(f"no {CALL_END} before the next {CALL}")
        self._close()
        return tag == CALL_END

    def _note_junk(self) -> None:
        if not self._junk.blank:
            self._problem(f"text that is no argument, left out: {self._junk}")
            self._junk = Excerpt()

    # A key and its value.

    def _key_text(self, text: str) -> None:
        self._parts.append(text)

    def _key_tag(self, tag: str) -> bool:
        if tag == KEY_END:
            self._key, self._state = self._whole().strip(), self._after_key
            return True
        self._problem(f"no {KEY_END} after the key {quote(self._whole())}, left out")
        self._state = self._between
        return False

    def _after_key_tag(self, tag: str) -> bool:
        if tag in (KEY_END, VALUE_END):
            self._junk.add(tag)
            return True
        self._note_junk()
        if tag == VALUE:
            self._begin_value()
            return True
        self._problem(f"no value for {quote(self._key)}, left out")
        self._state = self._between
        return False

    def _begin_value(self) -> None:
        self._parts, self._state = [], self._in_value
        known = self._schemas.is_string(self._name, self._key)
        self._streams = known and self._key not in self._arguments
        if self._streams:
            self._emit(self._arguments.lead(self._key) + '"')

    def _value_text(self, text: str) -> None:
        if self._streams:
            self._emit(escape(text))
        else:
            self._parts.append(text)

    def _value_tag(self, _: str) -> bool:
        self._state = self._between
        if self._streams:
            self._emit('"')
        elif self._key in self._arguments:
            self._problem(
                f"the key {quote(self._key)} again, left out with its value {quote(self._whole())}"
            )
        else:
            self._emit(self._arguments.lead(self._key) + to_json(self._whole()))
        return True

    def _whole(self) -> str:
        return "".join(self._parts)
