"""``POST /v1/chat/completions``: messages in, thinking, content and tool calls out."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from laguna_ref.chat.answer import AnswerParser, Delta, join
from laguna_ref.server import errors, logprobs
from laguna_ref.server.answers import Answers, require_whole
from laguna_ref.server.chat_prompt import ChatPrompt, chat_prompt
from laguna_ref.server.chat_trace import traced
from laguna_ref.server.completions import ending, usage
from laguna_ref.server.job import Computed, Finish, Job, Token, Update
from laguna_ref.server.requests import ChatRequest
from laguna_ref.server.service import Service


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    job: Job
    parser: AnswerParser
    begun: bool = False
    tokens: list[Token] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)
    computed: Computed | None = None
    ending: dict[str, Any] = field(default_factory=dict)


class Chat:
    """One request: its jobs, and what becomes of their updates."""

    def __init__(self, service: Service, body: ChatRequest) -> None:
        self.service, self.body = service, body
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = service.require_model(body.model)
        self.names = logprobs.Names(service.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self.trace = body.laguna is not None and body.laguna.trace
        if self.trace and not body.stream:
            raise errors.bad_request("a trace needs stream: true", "laguna")
        if body.stream and body.prompt_logprobs is not None:
            raise errors.bad_request("not available with stream", "prompt_logprobs")
        of_prompt = service.logprobs_within(body.prompt_logprobs, "prompt_logprobs")
        count = self._logprobs_count()
        self.prompt = chat_prompt(service, body)
        self.jobs = service.jobs(
            body, [self.prompt.ids], default_max_tokens=None, logprobs=count,
            prompt_logprobs=of_prompt, trace=self.trace, keep_at=self.prompt.keep_at,
        )  # fmt: skip
        self.choices = [
            Choice(index, job, self._parser(self.prompt)) for index, job in enumerate(self.jobs)
        ]

    def _logprobs_count(self) -> int | None:
        """How many likeliest tokens the engine shows; raises ApiError."""
        top = self.service.logprobs_within(self.body.top_logprobs, "top_logprobs")
        if top and not self.body.logprobs:
            raise errors.bad_request("needs logprobs: true", "top_logprobs")
        wanted = (top or 0) if self.body.logprobs else None
        if self.trace and self.body.laguna is not None:
            return max(wanted or 0, self.body.laguna.top)
        return wanted

    def _parser(self, prompt: ChatPrompt) -> AnswerParser:
        settings = self.service.settings
        return AnswerParser(
            thinking=prompt.thinking,
            tools=prompt.tools,
            parse_reasoning=settings.parse_reasoning,
            parse_tools=settings.parse_tools and bool(prompt.tools) and prompt.calls_allowed,
        )

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The answer in one piece."""
        async for index, update in answers:
            require_whole(update)
            self._take(self.choices[index], update, answers)
        first = self.choices[0].computed
        result = self._frame("chat.completion") | {
            "choices": [self._whole_choice(choice) for choice in self.choices],
            "usage": self._usage(),
        }
        if self.body.prompt_logprobs is not None and first is not None:
            result["prompt_logprobs"] = logprobs.of_prompt(first.scores or (), self.names)
        if self.body.return_token_ids:
            result["prompt_token_ids"] = list(self.prompt.ids)
        return result

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes."""
        async for index, update in answers:
            choice = self.choices[index]
            if not choice.begun:
                choice.begun = True
                first = self._chunk(choice, {"role": "assistant", "content": ""})
                if self.body.return_token_ids:
                    first["prompt_token_ids"] = list(self.prompt.ids)
                yield first
            deltas = self._take(choice, update, answers)
            extras = self._extras(update)
            for part in [self._delta(choice, delta) for delta in deltas] or (
                [{}] if extras else []
            ):
                yield self._chunk(choice, part, extras)
                extras = {}
            if choice.ending:
                yield self._chunk(choice, {}, choice.ending)
        if self.body.include_usage:
            yield self._frame("chat.completion.chunk") | {"choices": [], "usage": self._usage()}

    def _take(self, choice: Choice, update: Update, answers: Answers) -> list[Delta]:
        """What an update adds to the answer."""
        if update.computed is not None:
            choice.computed = update.computed
        if update.token is not None:
            choice.tokens.append(update.token)
        deltas = choice.parser.push(update.text) if update.text else []
        if update.finish is not None:
            deltas += choice.parser.finish()
        finish = update.finish
        second = self._second_call(deltas)
        if second is not None:
            deltas, finish = deltas[:second], Finish("stop")
        choice.deltas += deltas
        if finish is not None:
            answers.end(choice.index)
            choice.ending = self._ending(choice, finish)
        return deltas

    def _second_call(self, deltas: list[Delta]) -> int | None:
        """Where a second call begins, if one alone is asked for: the answer ends before it."""
        if self.body.parallel_tool_calls is not False:
            return None
        return next((at for at, one in enumerate(deltas) if one.call and one.call.index > 0), None)

    def _ending(self, choice: Choice, finish: Finish) -> dict[str, Any]:
        result = ending(finish, self.body.stop_token_ids)
        if result["finish_reason"] == "stop" and any(delta.call for delta in choice.deltas):
            result["finish_reason"] = "tool_calls"
        if choice.parser.problems:
            result["laguna"] = {"problems": list(choice.parser.problems)}
        return result

    def _delta(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """A piece in the words of a stream; a call's id, type and name come with its first."""
        if delta.call is None:
            return reasoning(delta.reasoning) if delta.reasoning else {"content": delta.content}
        call = delta.call
        function: dict[str, Any] = {"arguments": call.arguments}
        if call.name is None:
            return {"tool_calls": [{"index": call.index, "function": function}]}
        choice.call_ids.append(_call_id())
        function = {"name": call.name, "arguments": call.arguments}
        entry = {"index": call.index, "id": choice.call_ids[-1], "type": "function"}
        return {"tool_calls": [entry | {"function": function}]}

    def _extras(self, update: Update) -> dict[str, Any]:
        """What goes with a token beside its text."""
        if update.token is None:
            return {}
        extras: dict[str, Any] = {}
        if self.body.logprobs:
            extras["logprobs"] = logprobs.content([self._shown(update.token)], self.names)
        if self.body.return_token_ids:
            extras["token_ids"] = [update.token.id]
        if self.trace and self.body.laguna is not None:
            top = self.body.laguna.top
            extras["laguna"] = {"tokens": [traced(update.token, self.names, top)]}
        return extras

    def _shown(self, token: Token) -> Token:
        """With as many likeliest tokens as ``top_logprobs`` says; a trace may have taken more."""
        return logprobs.cut(token, self.body.top_logprobs or 0)

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        answer = join(choice.deltas)
        message: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.reasoning is not None:
            message |= reasoning(answer.reasoning)
        if answer.calls:
            message["tool_calls"] = [
                {"id": _call_id(), "type": "function",
                 "function": {"name": call.name, "arguments": call.arguments}}
                for call in answer.calls
            ]  # fmt: skip
        elif answer.content is None:
            message["content"] = ""
        shown = [self._shown(token) for token in choice.tokens]
        scores = logprobs.content(shown, self.names) if self.body.logprobs else None
        result = {"index": choice.index, "message": message, "logprobs": scores} | choice.ending
        if self.body.return_token_ids:
            result["token_ids"] = [token.id for token in choice.tokens]
        return result

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], extras: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        part = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._frame("chat.completion.chunk") | {"choices": [part | (extras or {})]}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": self.service.fingerprint,
            "laguna": {"seed": self.jobs[0].seed},
        }  # fmt: skip

    def _usage(self) -> dict[str, Any]:
        computed = self.choices[0].computed
        return usage(
            len(self.prompt.ids),
            sum(len(choice.tokens) for choice in self.choices),
            computed.cached_tokens if computed else 0,
        )


def reasoning(text: str) -> dict[str, str]:
    """Under the model card's name and under the one that vLLM has since taken."""
    return {"reasoning_content": text, "reasoning": text}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
