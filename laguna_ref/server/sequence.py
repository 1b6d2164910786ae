"""A running request: its tokens, its cache, its sampling, and what it has to tell."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from laguna_ref.chat.tokenizer import Tokenizer
from laguna_ref.config import LagunaConfig
from laguna_ref.kv_cache import KVCache
from laguna_ref.numerics import Array
from laguna_ref.sampling import sample
from laguna_ref.server.job import Computed, Experts, Finish, Job, Scored, Token, Update
from laguna_ref.server.prefix_cache import branches
from laguna_ref.server.scores import scored
from laguna_ref.server.text_out import TextOut
from laguna_ref.trace import Recorder


class Sequence:
    """Knows which tokens to compute next and what to make of their logits.

    Only the engine's thread touches it, but for ``cancelled``, which anyone may set.
    """

    def __init__(
        self, job: Job, tokenizer: Tokenizer | None, config: LagunaConfig, limit: int,
        deliver: Callable[[Update], None],
    ) -> None:  # fmt: skip
        self.job = job
        self.deliver = deliver
        self.cancelled = False
        self.ended = False
        self.arrived = time.monotonic()
        self.tokens = list(job.prompt)
        self.generated = 0
        self.recorder = _recorder(config) if job.trace else None
        self._limit = limit  # of tokens in the cache
        self._branches = branches(len(job.prompt), job.keep_at)
        self._text = TextOut(
            tokenizer, job.stop, include_stop=job.include_stop, skip_special=job.skip_special
        )
        self._generator = np.random.default_rng(job.seed)
        self._prompt_scores: list[Scored] = []
        self._cached_tokens = 0
        self._cache: KVCache | None = None

    @property
    def cache(self) -> KVCache:
        """Set by ``start``."""
        assert self._cache is not None
        return self._cache

    def start(self, cache: KVCache) -> None:
        """Joins the batch with a cache that may hold a prefix of the prompt."""
        self._cache = cache
        self._cached_tokens = cache.length

    def rest(self) -> str:
        """Text held back for a stop text that did not come."""
        return self._text.finish()

    def release(self) -> None:
        """Lets go of the cache: the answers of one request end one by one."""
        self._cache = self.recorder = None

    @property
    def in_prompt(self) -> bool:
        """Whether more than the newest token is still to compute."""
        return self.generated == 0

    @property
    def wants_all_logits(self) -> bool:
        """Whether the logits of every token count, not only those of the last."""
        return self.job.prompt_logprobs is not None and self.in_prompt

    @property
    def at_branch(self) -> bool:
        """Whether the cache now holds a prefix of the prompt worth keeping."""
        return self.cache.length in self._branches

    def chunk(self, most: int) -> list[int]:
        """The next tokens to compute, at most ``most``, up to the next branch of the prompt."""
        done = self.cache.length
        end = next((length for length in self._branches if length > done), len(self.tokens))
        return self.tokens[done : min(end, done + most)]

    def advance(self, logits: Array) -> Update | None:
        """Takes in the logits of a chunk [T, V], or of its last token [1, V]."""
        if self.wants_all_logits:
            self._score_prompt(logits)
        if self.cache.length < len(self.tokens):
            return None
        computed = self._computed() if self.in_prompt else None
        if self.job.max_tokens == 0:
            return Update(computed=computed, finish=Finish("length"))
        return self._next_token(logits[-1], computed)

    def _score_prompt(self, logits: Array) -> None:
        first = self.cache.length - len(logits)
        for row, token in zip(logits, self.job.prompt[first + 1 :], strict=False):
            self._prompt_scores.append(scored(row, token, self.job.prompt_logprobs or 0))

    def _computed(self) -> Computed:
        wanted = self.job.prompt_logprobs is not None
        return Computed(self._cached_tokens, tuple(self._prompt_scores) if wanted else None)

    def _next_token(self, logits: Array, computed: Computed | None) -> Update:
        token = sample(logits, self.job.sampling, self._generator)
        k = self.job.logprobs
        score = None if k is None else scored(logits, token, k)
        self.generated += 1
        finish, own, text = self._said(token)
        self.tokens.append(token)
        return Update(text, Token(token, own, score, self._experts()), computed, finish)

    def _said(self, token: int) -> tuple[Finish | None, str, str]:
        """Whether the token ends the answer, its own text, and what is certain of the answer."""
        if token in self.job.stop_ids:
            return Finish("stop", token), "", self._text.finish()
        own, text = self._text.push(token)
        full = self.cache.length >= self._limit
        if self._text.stopped is None and (full or self.generated == self.job.max_tokens):
            text += self._text.finish()
            if self._text.stopped is None:
                return Finish("length"), own, text
        if self._text.stopped is not None:
            return Finish("stop", self._text.stopped), own, text
        return None, own, text

    def _experts(self) -> Experts | None:
        if self.recorder is None:
            return None
        chosen: Experts = {}
        for point in self.recorder:
            if point.endswith("topk_ids"):
                ids = self.recorder[point][-1]
                weights = self.recorder[point.replace("topk_ids", "topk_weights")][-1]
                layer = int(point.split(".")[2])
                chosen[layer] = [(int(i), float(w)) for i, w in zip(ids, weights, strict=True)]
        self.recorder.clear()
        return chosen


def _recorder(config: LagunaConfig) -> Recorder | None:
    if all(layer.mlp != "sparse" for layer in config.layers):
        return None
    return Recorder("model.layers.*.mlp.topk_ids", "model.layers.*.mlp.topk_weights")
