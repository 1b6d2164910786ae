"""``POST /v1/completions``: text or token ids in, their continuation out."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from laguna_ref.server import errors, logprobs
from laguna_ref.server.answers import Answers, require_whole
from laguna_ref.server.job import Computed, Finish, Job, Token, Update
from laguna_ref.server.requests import CompletionRequest
from laguna_ref.server.service import Service

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, and vLLM's."""


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    job: Job
    legacy: logprobs.Legacy
    tokens: list[Token] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    computed: Computed | None = None
    finish: Finish | None = None


class Completion:
    """One request: its jobs, and what becomes of their updates."""

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        self.service, self.body = service, body
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = service.require_model(body.model)
        self.names = logprobs.Names(service.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        if body.stream and body.prompt_logprobs is not None:
            raise errors.bad_request("not available with stream", "prompt_logprobs")
        count = service.logprobs_within(body.logprobs, "logprobs")
        of_prompt = service.logprobs_within(body.prompt_logprobs, "prompt_logprobs")
        if of_prompt is None and body.echo:
            of_prompt = count
        prompts = self._prompts()
        jobs = service.jobs(
            body, prompts, default_max_tokens=DEFAULT_MAX_TOKENS, logprobs=count,
            prompt_logprobs=of_prompt,
        )  # fmt: skip
        self.jobs = jobs
        self.choices = [
            Choice(index, job, logprobs.Legacy(self.names)) for index, job in enumerate(jobs)
        ]

    def _prompts(self) -> list[Sequence[int]]:
        """As token ids; raises ApiError for ids there are not, and for empty prompts."""
        result: list[Sequence[int]] = []
        for given in self.body.prompts():
            if isinstance(given, str):
                given = self.service.require_tokenizer("prompt").encode(given)
            size = self.service.model.config.vocab_size
            wrong = next((token for token in given if not 0 <= token < size), None)
            if wrong is not None:
                raise errors.bad_request(
                    f"token {str(wrong)[:20]} is not in the vocabulary of {size}", "prompt"
                )
            if not given:
                raise errors.bad_request("must not be empty", "prompt")
            result.append(given)
        return result

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The answer in one piece."""
        async for index, update in answers:
            require_whole(update)
            self._take(self.choices[index], update)
        return self._frame("text_completion") | {
            "choices": [self._whole_choice(choice) for choice in self.choices],
            "usage": self.usage(),
        }

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes."""
        async for index, update in answers:
            choice = self.choices[index]
            text, scores = self._take(choice, update)
            if not (text or scores or update.finish or self.body.return_token_ids):
                continue
            part = {"index": index, "text": text, "logprobs": scores} | self._ending(update.finish)
            if self.body.return_token_ids:
                part["token_ids"] = [update.token.id] if update.token else []
                if update.computed:
                    part["prompt_token_ids"] = list(choice.job.prompt)
            yield self._frame("text_completion") | {"choices": [part]}
        if self.body.include_usage:
            yield self._frame("text_completion") | {"choices": [], "usage": self.usage()}

    def _take(self, choice: Choice, update: Update) -> tuple[str, dict[str, Any] | None]:
        """What an update adds to the text and to the log-probabilities."""
        text, scores = update.text, []
        if update.computed is not None:
            choice.computed = update.computed
            if self.body.echo:
                text, echoed = self._echo(choice, update.computed)
                text += update.text
                scores += echoed
        if update.token is not None:
            choice.tokens.append(update.token)
            if self.body.logprobs is not None:
                scores.append(choice.legacy.of_tokens([update.token]))
        choice.finish = update.finish
        choice.texts.append(text)
        choice.logprobs += scores
        return text, logprobs.joined(scores) if scores else None

    def _echo(self, choice: Choice, computed: Computed) -> tuple[str, list[dict[str, Any]]]:
        prompt = choice.job.prompt
        tokenizer = self.service.tokenizer
        decoder = None if tokenizer is None else tokenizer.stream()
        texts = [decoder.push(token) if decoder else "" for token in prompt]
        if decoder:
            texts[-1] += decoder.finish()
        if self.body.logprobs is None or computed.scores is None:
            return "".join(texts), []
        return "".join(texts), [choice.legacy.of_prompt(prompt, computed.scores, texts)]

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        assert choice.computed is not None
        result = {
            "index": choice.index,
            "text": "".join(choice.texts),
            "logprobs": logprobs.joined(choice.logprobs) if choice.logprobs else None,
        } | self._ending(choice.finish)
        if self.body.prompt_logprobs is not None:
            scores = choice.computed.scores or ()
            result["prompt_logprobs"] = logprobs.of_prompt(scores, self.names)
        if self.body.return_token_ids:
            result["token_ids"] = [token.id for token in choice.tokens]
            result["prompt_token_ids"] = list(choice.job.prompt)
        return result

    def _ending(self, finish: Finish | None) -> dict[str, Any]:
        return ending(finish, self.body.stop_token_ids)

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": self.service.fingerprint,
            "laguna": {"seed": self.jobs[0].seed},
        }  # fmt: skip

    def usage(self) -> dict[str, Any]:
        """Tokens of all answers; a prompt counts once, however many answers it has."""
        prompts = self.choices[:: self.body.n or 1]
        return usage(
            sum(len(choice.job.prompt) for choice in prompts),
            sum(len(choice.tokens) for choice in self.choices),
            sum(choice.computed.cached_tokens for choice in prompts if choice.computed),
        )


def ending(finish: Finish | None, asked: Sequence[int] | None) -> dict[str, Any]:
    """``finish_reason``, and ``stop_reason`` as vLLM has it: what of the request was met."""
    if finish is None:
        return {"finish_reason": None, "stop_reason": None}
    stop = finish.stop
    if isinstance(stop, int) and stop not in (asked or ()):
        stop = None
    return {"finish_reason": finish.reason, "stop_reason": stop}


def usage(prompt: int, generated: int, cached: int) -> dict[str, Any]:
    """OpenAI's ``usage``; the token that ended an answer counts."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
