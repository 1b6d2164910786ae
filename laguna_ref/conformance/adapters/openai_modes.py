"""The ways in which servers show log-probabilities of a prompt given as token ids.

===================  ===============================================================================
``prompt_logprobs``  vLLM: one request a prompt; the last row is that of one token generated
``echo``             ``echo`` with ``logprobs``, as OpenAI once had it: one request a prompt
``completion``       llama-server's own ``/completion`` with ``n_probs``: one request a prefix
``continue``         one token generated after each prefix, its ``logprobs``: one request a prefix
===================  ===============================================================================

Tokens come back as ids where the server can (``return_tokens_as_token_ids``, llama-server's
``id``), else as text, which the checkpoint's own tokenizer turns into ids where it stands for one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.backend import BackendError

Row = dict[int, float]
"""Token id -> log-probability in nats."""
ID_PREFIX = "token_id:"


class Request(NamedTuple):
    """What is sent, and which token of the prompt the first row of the answer belongs to."""

    path: str
    body: dict[str, Any]
    first: int


@dataclass(frozen=True)
class Words:
    """How many ids there are, and the ids of texts that stand for one alone."""

    count: int
    ids: Mapping[str, int]

    def id_of(self, text: str) -> int:
        """The id that a server means; raises BackendError where that cannot be told."""
        if text.startswith(ID_PREFIX):
            return self.checked(text.removeprefix(ID_PREFIX))
        if text not in self.ids:
            raise BackendError("a token came back as text that stands for no one id", found=text,
                               expected="token ids (vLLM: return_tokens_as_token_ids)")  # fmt: skip
        return self.ids[text]

    def checked(self, value: Any) -> int:
        """An id as a number; raises BackendError if it is none of the vocabulary."""
        try:
            found = int(value)
        except (TypeError, ValueError):
            found = -1
        if not 0 <= found < self.count:
            raise BackendError("no such token id", expected=f"0 to {self.count - 1}",
                               found=str(value))  # fmt: skip
        return found


@dataclass(frozen=True)
class Mode:
    """One way to ask."""

    name: str
    requests: Callable[[list[int], int], list[Request]]
    """All requests for a prompt, for k likeliest tokens each."""
    rows: Callable[[dict[str, Any], list[int], int, Words], dict[int, Row]]
    """By place in the prompt, what one answer shows; raises BackendError for another answer."""


def words_of(folder: Path) -> Words:
    """Of the checkpoint; without a tokenizer.json only ids can be told."""
    count = LagunaConfig.from_file(folder).vocab_size
    file = folder / "tokenizer.json"
    if not file.is_file():
        return Words(count, {})
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    texts = tokenizer.decode_batch([[i] for i in range(count)], skip_special_tokens=False)
    times = Counter(texts)
    return Words(count, {text: i for i, text in enumerate(texts) if text and times[text] == 1})


def _asking(prompt: list[int], k: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": k,
            "return_tokens_as_token_ids": True, **more}  # fmt: skip


def _whole(prompt: list[int], k: int, **more: Any) -> list[Request]:
    return [Request("completions", _asking(prompt, k, **more), 0)]


def _prefixes(prompt: list[int], k: int) -> list[Request]:
    return [
        Request("completions", _asking(prompt[: end + 1], k), end) for end in range(len(prompt))
    ]


def _native_prefixes(prompt: list[int], k: int) -> list[Request]:
    return [
        Request(
            "/completion",
            {"prompt": prompt[: end + 1], "n_predict": 1, "n_probs": k, "temperature": 0},
            end,
        )
        for end in range(len(prompt))
    ]


def _echoed(answer: dict[str, Any], tokens: list[int], first: int, words: Words) -> dict[int, Row]:
    """Entry i + 1 is the distribution after token i; the first entry has none."""
    logprobs = _choice(answer).get("logprobs")
    top = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(top, list) or len(top) != len(tokens) + 1:
        raise BackendError(
            "echo brought another number of tokens", expected=len(tokens) + 1,
            found="none" if not isinstance(top, list) else len(top),
        )  # fmt: skip
    _require_count(answer, len(tokens))
    return {place: _of_mapping(row, words) for place, row in enumerate(top[1:]) if row}


def _of_prompt(
    answer: dict[str, Any], tokens: list[int], first: int, words: Words
) -> dict[int, Row]:
    choice = _choice(answer)
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(tokens):
        raise BackendError(
            "prompt_logprobs of another number of tokens", expected=len(tokens),
            found="none" if not isinstance(rows, list) else len(rows),
        )  # fmt: skip
    found = {
        place: {words.checked(key): _number(entry) for key, entry in row.items()}
        for place, row in enumerate(rows[1:])
        if isinstance(row, dict)
    }
    return found | _continued(answer, tokens, len(tokens) - 1, words)


def _continued(
    answer: dict[str, Any], tokens: list[int], first: int, words: Words
) -> dict[int, Row]:
    """Of the token generated after a prefix: OpenAI's older form, or the one with ``content``."""
    _require_count(answer, first + 1)
    logprobs = _choice(answer).get("logprobs")
    if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
        return {first: _of_entries(logprobs["content"], words)}
    top = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(top, list) or not top or not isinstance(top[-1], dict):
        raise BackendError("no log-probabilities of the token generated", expected="top_logprobs")
    return {first: _of_mapping(top[-1], words)}


def _native(answer: dict[str, Any], tokens: list[int], first: int, words: Words) -> dict[int, Row]:
    entries = answer.get("completion_probabilities")
    if not isinstance(entries, list):
        raise BackendError("no log-probabilities", expected="completion_probabilities")
    evaluated = answer.get("tokens_evaluated")
    if evaluated is not None and evaluated != first + 1:
        raise BackendError("the server counts other tokens", expected=first + 1, found=evaluated)
    return {first: _of_entries(entries, words)}


MODES = {
    mode.name: mode
    for mode in (
        Mode("prompt_logprobs", lambda p, k: _whole(p, k, prompt_logprobs=k), _of_prompt),
        Mode("echo", lambda p, k: _whole(p, k, echo=True), _echoed),
        Mode("completion", _native_prefixes, _native),
        Mode("continue", _prefixes, _continued),
    )
}
"""In the order in which they are tried."""


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BackendError("an answer without choices", found=str(answer)[:100])
    return choices[0]


def _require_count(answer: dict[str, Any], count: int) -> None:
    """A server that adds a BOS token of its own computes something else."""
    usage = answer.get("usage")
    found = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if found is not None and found != count:
        raise BackendError("the server counts other tokens than it was given", expected=count,
                           found=found)  # fmt: skip


def _of_mapping(row: Any, words: Words) -> Row:
    if not isinstance(row, dict):
        raise BackendError("top_logprobs of a strange form", expected="token: log-probability",
                           found=str(row)[:100])  # fmt: skip
    return {words.id_of(text): _number(value) for text, value in row.items()}


def _of_entries(entries: Iterable[Any], words: Words) -> Row:
    """The first entry's ``top_logprobs``, by id where there is one."""
    entry = next(iter(entries), None)
    top = entry.get("top_logprobs") if isinstance(entry, dict) else None
    if not isinstance(top, list) or not top:
        raise BackendError("no log-probabilities of the token generated", expected="top_logprobs",
                           found=str(entry)[:100])  # fmt: skip
    return {
        words.checked(one["id"]) if "id" in one else words.id_of(str(one.get("token"))):
        _number(one)
        for one in top
    }  # fmt: skip


def _number(value: Any) -> float:
    """A log-probability, bare or in an object; null is one that JSON cannot spell."""
    found = value.get("logprob") if isinstance(value, dict) else value
    if isinstance(found, bool) or not isinstance(found, int | float | None):
        raise BackendError("not a log-probability", expected="a number", found=str(found)[:50])
    return -math.inf if found is None else float(found)
