"""Log-probabilities in OpenAI's two forms, and prompt log-probabilities as vLLM spells them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from laguna_ref.chat.tokenizer import Tokenizer
from laguna_ref.server.job import Scored, Token


class Names:
    """Tokens as text, or as ``token_id:N``, which says which one even where texts are equal."""

    def __init__(self, tokenizer: Tokenizer | None, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids or tokenizer is None

    def __call__(self, token: int) -> str:
        """What stands for the token."""
        return f"token_id:{token}" if self._as_ids else self.text(token)

    def text(self, token: int) -> str:
        """Its text; U+FFFD for part of a character."""
        return "" if self._tokenizer is None else self._tokenizer.decode([token])

    def bytes(self, token: int) -> list[int] | None:
        """Its bytes."""
        return None if self._tokenizer is None else list(self._tokenizer.token_bytes(token))


class Legacy:
    """The ``logprobs`` of completions: four lists, one entry a token."""

    def __init__(self, names: Names, offset: int = 0) -> None:
        self._names = names
        self._offset = offset

    def of_prompt(
        self, prompt: Sequence[int], scores: Sequence[Scored], texts: Sequence[str]
    ) -> dict[str, Any]:
        """Of an echoed prompt; its first token has no probability."""
        result = self._empty()
        self._add(result, prompt[0], None, texts[0])
        for score, text in zip(scores, texts[1:], strict=True):
            self._add(result, score.token, score, text)
        return result

    def of_tokens(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """Of tokens generated."""
        result = self._empty()
        for token in tokens:
            self._add(result, token.id, token.scored, token.text)
        return result

    def _empty(self) -> dict[str, Any]:
        return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}

    def _add(self, result: dict[str, Any], token: int, score: Scored | None, text: str) -> None:
        top: dict[str, float] | None = None
        if score is not None:
            top = {}
            for other, logprob in (*score.top, (score.token, score.logprob)):
                top.setdefault(self._names(other), logprob)  # of equal texts the likeliest
        result["text_offset"].append(self._offset)
        result["token_logprobs"].append(None if score is None else score.logprob)
        result["tokens"].append(self._names(token))
        result["top_logprobs"].append(top)
        self._offset += len(text)


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several such objects as one."""
    return {key: [entry for part in parts for entry in part[key]] for key in parts[0]}


def content(tokens: Iterable[Token], names: Names) -> dict[str, Any]:
    """The ``logprobs`` of chat: one entry a token."""
    return {
        "content": [
            _entry(names, score.token, score.logprob)
            | {"top_logprobs": [_entry(names, *one) for one in score.top]}
            for score in (token.scored for token in tokens)
            if score is not None
        ],
        "refusal": None,
    }


def _entry(names: Names, token: int, logprob: float) -> dict[str, Any]:
    return {"token": names(token), "logprob": logprob, "bytes": names.bytes(token)}


def of_prompt(scores: Sequence[Scored], names: Names) -> list[dict[str, Any] | None]:
    """vLLM's ``prompt_logprobs``: null for the first token, then by id, its own token included."""
    rows: list[dict[str, Any] | None] = [None]
    for score in scores:
        row = {
            str(token): {
                "logprob": logprob, "rank": rank, "decoded_token": names.text(token),
            }
            for rank, (token, logprob) in enumerate(score.top, 1)
        }  # fmt: skip
        row.setdefault(
            str(score.token),
            {
                "logprob": score.logprob, "rank": score.rank,
                "decoded_token": names.text(score.token),
            },
        )  # fmt: skip
        rows.append(row)
    return rows


def cut(token: Token, count: int) -> Token:
    """The same token with at most ``count`` of the likeliest; -1: all."""
    if token.scored is None or count < 0:
        return token
    score = dataclasses.replace(token.scored, top=token.scored.top[:count])
    return dataclasses.replace(token, scored=score)
