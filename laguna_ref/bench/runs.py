"""Timing a model: one more token behind a context, and a prompt from nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from laguna_ref.bench.contexts import Filler, random_tokens
from laguna_ref.bench.operations import split
from laguna_ref.bench.timing import Effort, Timing, timed
from laguna_ref.bench.work import Rates, Storage, Work, attention_work, weights_work
from laguna_ref.config import LagunaConfig
from laguna_ref.kv_cache import KVCache
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder

TOKENS_IN_TURN = 64
"""Different tokens decoded one after another, so that they choose different experts."""
ROUTING_STEPS = 16
"""Decode steps whose experts are counted when a batch shares some."""


@dataclass(frozen=True)
class Result:
    """One timed run, what it needed, and what it is compared with."""

    what: str
    """``decode`` or ``prefill``."""
    tokens: int
    """New tokens of one sequence: 1 when decoding."""
    context: int
    """Tokens that the last one sees, itself included."""
    batch: int
    """Sequences run together."""
    threads: int
    timing: Timing
    work: Work
    """Of the whole run, all its tokens together."""
    hits: tuple[int, ...]
    """Different experts that its tokens chose, by layer."""
    attention: Work
    """The part of it that is keys, values and scores."""
    peer: str | None = None
    """Name of the other implementation; None for this one."""
    operations: dict[str, float] = field(default_factory=dict)
    """Seconds by operation, of a run of its own."""

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all sequences, in the fastest repeat."""
        return self.tokens * self.batch / self.timing.best

    def share_of_limit(self, rates: Rates) -> float:
        """The least time that the machine would need, divided by the time it took."""
        return self.work.seconds(rates) / self.timing.best

    def attention_share(self, rates: Rates) -> float | None:
        """The same for full and sliding attention alone, where it was timed."""
        seconds = sum(
            taken for name, taken in self.operations.items() if name.startswith("attention")
        )
        return self.attention.seconds(rates) / seconds if seconds else None

    def to_json(self, rates: Rates) -> dict[str, Any]:
        """The stable keys first."""
        tokens = self.tokens * self.batch
        limit = self.work.seconds(rates)
        return {
            "what": self.what,
            "tokens": self.tokens,
            "context": self.context,
            "batch": self.batch,
            "tokens_per_s": self.tokens_per_s,
            "bytes_per_token": self.work.nbytes / tokens,
            "flops_per_token": self.work.flops / tokens,
            "share_of_limit": self.share_of_limit(rates),
            "peer": self.peer,
            "threads": self.threads,
            "seconds": self.timing.to_json(),
            "memory": self.timing.memory.to_json(),
            "limit_tokens_per_s": tokens / limit,
            "bound_by": self.work.bound_by(rates),
            "attention_share_of_limit": self.attention_share(rates),
            "seconds_by_operation": self.operations,
        }


class Runs:
    """The runs of one model; each returns a Result."""

    def __init__(self, model: Laguna, effort: Effort, seed: int = 0) -> None:
        self.model = model
        self.effort = effort
        self.seed = seed
        self.storage = storage_of(model)
        self._filler: Filler | None = None

    def decode(self, context: int, threads: int, *, batch: int = 1, profile: bool = True) -> Result:
        """One token behind ``context - 1`` others in each of ``batch`` sequences."""
        self._filler = self._filler or Filler(self.model, self.seed)
        before = self._filler.filled(context - 1)
        caches = [before, *(before.copy() for _ in range(batch - 1))]
        turns = self._turns(batch)

        def forget() -> None:
            for cache in caches:
                cache.truncate(context - 1)

        def step() -> None:
            self.model.batch(next(turns), caches=caches, last_only=True)

        with_threads(self.model, threads)
        timing = timed(step, self.effort, after=forget)
        operations = split(self.model, step, 8, forget) if profile else {}
        hits = self._hits(turns, caches, forget) if batch > 1 else self._chosen()
        attention = attention_work(self.model.config, self.storage, context)
        attention = Work(batch * attention.nbytes, batch * attention.flops)
        work = weights_work(self.model.config, self.storage, batch, hits, batch) + attention
        return Result(
            "decode", 1, context, batch, threads, timing, work, tuple(hits), attention,
            operations=operations,
        )  # fmt: skip

    def prefill(self, tokens: int, threads: int, *, profile: bool = True) -> Result:
        """A prompt of ``tokens`` from an empty cache, logits of the last token only."""
        prompt = self.prompt(tokens)

        def run() -> None:
            self.model(prompt, last_only=True)

        with_threads(self.model, threads)
        hits = self.hits_of(prompt)
        # Counting the experts was the warm-up; 4,096 tokens take long enough as it is.
        effort = replace(self.effort, repeats=max(2, self.effort.repeats // 3))
        timing = timed(run, effort, warm_up=False)
        operations = split(self.model, run, 1, lambda: None) if profile else {}
        attention = attention_work(self.model.config, self.storage, tokens, tokens)
        work = weights_work(self.model.config, self.storage, tokens, hits) + attention
        return Result(
            "prefill", tokens, tokens, 1, threads, timing, work, tuple(hits), attention,
            operations=operations,
        )  # fmt: skip

    def hits_of(self, prompt: Array) -> list[int]:
        """Different experts that a prompt chooses, by layer."""
        traces = _choices(self.model.config, 1)
        trace = traces[0] if traces else None
        self.model(prompt, last_only=True, trace=trace)
        return count_hits(self.model.config, traces)

    def _chosen(self) -> list[int]:
        return [self.model.config.num_experts_per_tok] * len(self.model.config.layers)

    def _hits(
        self, turns: Iterator[list[Array]], caches: list[KVCache], after: Callable[[], None]
    ) -> list[int]:
        """Different experts that a step of a batch chooses, by layer, the mean of some steps."""
        found = []
        for _ in range(ROUTING_STEPS):
            traces = _choices(self.model.config, len(caches))
            self.model.batch(next(turns), caches=caches, last_only=True, traces=traces or None)
            found.append(count_hits(self.model.config, traces))
            after()
        return [round(mean) for mean in np.mean(found, axis=0)]

    def prompt(self, tokens: int) -> Array:
        """The tokens of a prefill."""
        return random_tokens(self.model, tokens, self.seed + 1)

    def decode_tokens(self, batch: int = 1) -> Array:
        """The tokens that are decoded in turn, [TOKENS_IN_TURN * batch]."""
        return random_tokens(self.model, TOKENS_IN_TURN * batch, self.seed + 2)

    def _turns(self, batch: int) -> Iterator[list[Array]]:
        drawn = self.decode_tokens(batch).reshape(TOKENS_IN_TURN, batch)
        steps = [list(step.reshape(batch, 1)) for step in drawn]
        return itertools.cycle(steps)


def _choices(config: LagunaConfig, count: int) -> list[Recorder]:
    """Recorders of the experts chosen; none for a model without experts."""
    if not any(layer.mlp == "sparse" for layer in config.layers):
        return []
    return [Recorder("model.layers.*.mlp.topk_ids") for _ in range(count)]


def count_hits(config: LagunaConfig, traces: list[Recorder]) -> list[int]:
    """Different experts in the traces of all sequences, by layer; 0 for a dense layer."""
    hits = []
    for layer in config.layers:
        point = f"model.layers.{layer.index}.mlp.topk_ids"
        chosen = [np.unique(trace[point]) for trace in traces if layer.mlp == "sparse"]
        hits.append(len(np.unique(np.concatenate(chosen))) if chosen else 0)
    return hits


def storage_of(model: Laguna) -> Storage:
    """How this package holds a model: weights as stored, the cache in its layers' own types."""
    widths = [
        1 if stored.fp8 else model.numerics.cache_dtype.itemsize for stored in model.kv_formats
    ]
    return Storage(None, tuple(widths))


def with_threads(model: Laguna, threads: int) -> None:
    """The model's next runs use so many threads."""
    model.threads = threads
