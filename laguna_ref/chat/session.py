"""A conversation with the model: its messages, and one key/value cache over all its turns.

Each turn renders the whole conversation anew, as a server would. What the cache already holds of
it, the longest common beginning, is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from laguna_ref.chat.answer import Answer, AnswerParser, Delta, join, thinking_open
from laguna_ref.chat.messages import check_messages
from laguna_ref.chat.prompt import encode
from laguna_ref.chat.template import Template
from laguna_ref.chat.tokenizer import Tokenizer
from laguna_ref.errors import CacheError
from laguna_ref.generate import generate
from laguna_ref.generation_config import GenerationConfig
from laguna_ref.model import Laguna

Message = dict[str, Any]


class Session:
    """The state of a conversation; ``thinking``, ``system`` and ``tools`` may change between turns.

    ``options`` are those of ``laguna_ref.generate``. The n-th answer is drawn with the seed
    ``seed + n``, so that a conversation can be had again.
    """

    def __init__(
        self,
        model: Laguna,
        tokenizer: Tokenizer,
        template: Template,
        *,
        thinking: bool = False,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        mode: str = "safe",
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.thinking = thinking
        self.system = system
        self.tools = tools
        self.mode = mode
        self.seed = seed
        if options.get("max_tokens") is None:
            options["max_tokens"] = GenerationConfig.of(model.checkpoint).max_tokens
        self.options = options
        self.messages: list[Message] = []
        self.cache = model.new_cache()
        self.cached: tuple[int, ...] = ()
        """The tokens whose keys and values the cache holds."""
        self._answers = 0

    def reset(self) -> None:
        """Forgets the messages; the cache still holds what the next conversation begins with."""
        self.messages = []
        self._answers = 0

    def begin(self, *messages: Message) -> Turn:
        """The turn that answers ``messages`` (of a user, or of tools).

        Raises InputError and TemplateError for what cannot be rendered or is too long; the
        conversation is then as before.
        """
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        given = [*system, *self.messages, *messages]
        ids = encode(
            self.tokenizer,
            self.template,
            check_messages(given),
            tools=self.tools,
            mode=self.mode,
            enable_thinking=self.thinking,
        ).ids
        turn = Turn(self, ids, self._reuse(ids), self.seed + self._answers)
        self.messages += messages
        self._answers += 1
        return turn

    def _reuse(self, ids: Sequence[int]) -> int:
        """Cuts the cache to what it shares with ``ids``; how many tokens that is.

        One token is always left to compute, as the model must say what comes after it.
        """
        pairs = zip(ids[:-1], self.cached, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        try:
            self.cache.truncate(shared)
        except CacheError:  # sliding layers have overwritten keys that are needed now
            self.cache, shared = self.model.new_cache(), 0
        self.cached = tuple(ids[:shared])
        return shared

    def remember(self, turn: Turn) -> None:
        """What a turn, finished or cut off, leaves behind."""
        lengths = {layer.length for layer in self.cache.layers}
        if len(lengths) > 1:  # interrupted between one layer and the next
            self.cache = self.model.new_cache()
        self.cached = (*turn.prompt, *turn.tokens)[: self.cache.length]
        if turn.finish_reason != "interrupted" or turn.answer.reasoning or turn.answer.content:
            self.messages.append(_message(turn, len(self.messages)))


class Turn:
    """One answer, as it is generated; ``deltas`` is to be gone through once, or closed."""

    def __init__(self, session: Session, prompt: tuple[int, ...], reused: int, seed: int) -> None:
        self.prompt = prompt
        self.reused = reused
        """Tokens of the prompt that the cache held."""
        self.tokens: list[int] = []
        self.answer = Answer(None, None, (), ())
        self.finish_reason = "interrupted"
        """"stop", "length" (max_tokens), "context" (the model's limit) or "interrupted"."""
        self._session = session
        self._on_prefill: Callable[[int, int], None] | None = None
        self._source = generate(
            session.model,
            prompt[reused:],
            cache=session.cache,
            seed=seed,
            on_prefill=lambda done, total: self._on_prefill and self._on_prefill(done, total),
            **session.options,
        )
        self._parser = AnswerParser(
            thinking=session.thinking and thinking_open(prompt),
            tools=session.tools,
            parse_tools=bool(session.tools),
        )

    def deltas(
        self, on_prefill: Callable[[int, int], None] | None = None
    ) -> Generator[Delta, None, None]:
        """Pieces of the answer as they come; at its end it is a message of the conversation.

        Closed before, or interrupted, the answer is what has come so far, without calls.
        """
        self._on_prefill = on_prefill
        seen: list[Delta] = []
        try:
            for delta in self._read():
                seen.append(delta)
                yield delta
            self.finish_reason = self._reason()
        finally:
            answer = join(seen, self._parser.problems)
            interrupted = self.finish_reason == "interrupted"
            self.answer = replace(answer, calls=()) if interrupted else answer
            self._session.remember(self)

    def _read(self) -> Iterator[Delta]:
        text = self._session.tokenizer.stream()
        for token in self._source:
            self.tokens.append(token)
            yield from self._parser.push(text.push(token))
        yield from self._parser.push(text.finish())
        yield from self._parser.finish()

    def _reason(self) -> str:
        if len(self.tokens) == self._session.options.get("max_tokens"):
            return "length"
        # The last token is generated but never computed, so one more than the context comes out.
        limit = self._session.model.config.max_position_embeddings
        full = len(self.prompt) + len(self.tokens) - 1 == limit
        return "context" if full else "stop"


def _message(turn: Turn, number: int) -> Message:
    """The answer as the client of a server would send it back; ``number`` makes ids unique."""
    answer = turn.answer
    message: Message = {"role": "assistant", "content": answer.content}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{number}_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(answer.calls)
        ]
    return message
