"""Thinking: what comes before ``</think>`` when the prompt has opened it.

Follows vLLM 0.32.0, ``vllm/reasoning/poolside_v1_reasoning_parser.py`` and the parsers it builds
on (``deepseek_v3``, ``deepseek_r1``, ``basic_parsers.py``), in streaming:

- All up to the first ``</think>`` is thinking, as it stands: the newlines that XS.2's layout has
  around it stay, because the template strips them when the message comes back. Without
  ``</think>`` all of the output is thinking.
- So is a ``<tool_call>`` in it: no call is made of it, which is told as a problem. (Ollama's
  ``model/parsers/laguna.go`` ends the thinking there.)
- A ``<think>`` in it, an echo of the prompt's, is dropped. (vLLM's non-streaming parser also
  drops all text before the first ``<think>``, even behind ``</think>``: text is lost there.)
- Tags are found in the text, as vLLM's tool parser finds them, also where the model spells one
  with ordinary tokens. (vLLM's reasoning parser streams by ids.)
- After it, or where the prompt closed it, ``<think>`` and ``</think>`` are content as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence

from laguna_ref.chat.tags import CALL, THINK, THINK_END, Problems, Tags

THINK_ID, THINK_END_ID, ASSISTANT_ID = 18, 19, 23

_TAGS = Tags(THINK, THINK_END, CALL)


def thinking_open(prompt_ids: Sequence[int]) -> bool:
    """Whether what follows the prompt is thinking.

    The last of ``<think>``, ``</think>`` and ``<assistant>`` decides (control tokens, not their
    text): ``</think>`` in an earlier turn is not taken for this one's, and a turn that has
    neither yet is open, as in vLLM's ``is_reasoning_end``. vLLM asks this only where the request
    turned thinking on; the released templates end in ``</think>`` where it did not.
    """
    for token in reversed(prompt_ids):
        if token == THINK_END_ID:
            return False
        if token in (THINK_ID, ASSISTANT_ID):
            return True
    return True


class ReasoningParser:
    """Splits an output into thinking and the rest."""

    def __init__(self, *, thinking: bool, calls: bool, problems: Problems) -> None:
        """``thinking``: whether the prompt left it open. ``calls``: whether calls are awaited."""
        self.open = thinking
        self._calls = calls
        self._problems = problems
        self._pending = ""

    def push(self, text: str) -> tuple[str, str]:
        """``(thinking, the rest)`` that is certain once ``text`` is known."""
        return self._split(text, final=False)

    def finish(self) -> tuple[str, str]:
        """What was held back; thinking that is still open is told as a problem."""
        thinking, rest = self._split("", final=True)
        if self.open:
            self._problems.add("the thinking was not closed by </think>")
        return thinking, rest

    def _split(self, text: str, *, final: bool) -> tuple[str, str]:
        if not self.open:
            return "", text
        text, start = self._pending + text, 0
        thinking: list[str] = []
        while True:
            end, tag = _TAGS.find(text, start, final=final)
            thinking.append(text[start:end])
            if tag is None:
                self._pending = text[end:]
                return "".join(thinking), ""
            start = end + len(tag)
            if tag == THINK_END:
                self.open = False
                return "".join(thinking), text[start:]
            if tag == CALL:
                thinking.append(tag)
                self._note_call()

    def _note_call(self) -> None:
        """Told once: a model may well think about its calls."""
        if self._calls:
            self._calls = False
            self._problems.add(f"a {CALL} inside the thinking is thinking, not a call")
