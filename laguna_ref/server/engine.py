"""The one batched loop: a thread of its own, one forward pass a step for everyone in it.

Sequences join and leave between steps. A prompt is computed in chunks beside those that decode,
so a long one holds nobody up for longer than a chunk. The numba engine's bits depend neither on
chunking nor on who else is in a batch, so an answer is that of the same request alone; the numpy
engine promises that only to rounding.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog

from laguna_ref.chat.tokenizer import Tokenizer
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.server import errors
from laguna_ref.server.job import Finish, Job, Update
from laguna_ref.server.prefix_cache import PrefixCache
from laguna_ref.server.sequence import Sequence

if TYPE_CHECKING:
    from laguna_ref.server.metrics import Metrics

log = structlog.get_logger("laguna_ref.engine")
WARM_PROMPT = 100
"""Tokens; longer ones are computed by the same kernels."""


@dataclass(frozen=True)
class Limits:
    """What the engine takes on at most."""

    max_model_len: int
    max_num_seqs: int = 8
    """Sequences in one batch."""
    max_waiting: int = 128
    """Sequences that wait for a place in it."""
    max_num_batched_tokens: int = 512
    """Tokens computed in one step."""
    prefix_cache_bytes: int = 512 * 2**20
    request_timeout: float = 600.0
    """Seconds from a request's arrival to the end of its answer."""


class Engine:
    """Runs jobs; ``submit`` may be called from any thread."""

    def __init__(
        self, model: Laguna, tokenizer: Tokenizer | None, limits: Limits, metrics: Metrics
    ) -> None:
        self.model, self.tokenizer, self.limits, self.metrics = model, tokenizer, limits, metrics
        self.prefixes = PrefixCache(limits.prefix_cache_bytes)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._changed = threading.Condition()
        self._ends_at: float | None = None
        self._on_drained: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Compiles what a first request would wait for, then takes jobs."""
        token = self.model.config.bos_token_id or 0
        caches = [self.model.new_cache() for _ in range(2)]
        long = max(1, min(WARM_PROMPT, self.limits.max_model_len - 1))
        # A long prompt, a batch and a single token are computed by different kernels.
        for chunks in ([[token] * long, [token]], [[token], [token]], [[token]]):
            if caches[0].length + len(chunks[0]) <= self.limits.max_model_len:
                self.model.batch(chunks, caches=caches[: len(chunks)], last_only=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a place in it."""
        return len(self._waiting)

    @property
    def accepting(self) -> bool:
        """Whether new jobs are taken, and someone is there to run them."""
        return self._ends_at is None and self._thread.is_alive()

    def require_room(self, count: int) -> None:
        """Raises ApiError unless ``count`` more jobs would be taken now."""
        if not self.accepting:
            raise errors.shutting_down()
        room = self.limits.max_waiting + self.limits.max_num_seqs
        if count > room:
            raise errors.bad_request(f"{count} answers asked for, at most {room} at once", "n")
        if len(self._waiting) + len(self._running) + count > room:
            raise errors.busy(self.metrics.seconds_to_wait(room, self.limits.max_num_seqs))

    def submit(self, jobs: list[Job], deliver: Callable[[int, Update], None]) -> list[Sequence]:
        """Queues all jobs or none; ``deliver(index, update)`` is called from the engine's thread.

        Raises ApiError when the queue is full (429) or the server is shutting down (503).
        """
        self.require_room(len(jobs))  # again below, where nobody comes in between
        sequences = [
            Sequence(
                job, self.tokenizer, self.model.config, self.limits.max_model_len,
                partial(deliver, index),
            )
            for index, job in enumerate(jobs)
        ]  # fmt: skip
        with self._changed:
            self.require_room(len(jobs))
            self._waiting.extend(sequences)
            self._changed.notify()
        return sequences

    def cancel(self, sequences: list[Sequence]) -> None:
        """Their places are free with the next step."""
        for sequence in sequences:
            sequence.cancelled = True
        with self._changed:
            self._changed.notify()

    def drain(self, grace: float, on_drained: Callable[[], None] | None = None) -> None:
        """Takes no new jobs, ends what runs after ``grace`` seconds, then calls ``on_drained``."""
        with self._changed:
            self._ends_at = time.monotonic() + grace
            self._on_drained = on_drained
            self._changed.notify()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the thread to end, which it does once drained."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._step()
            except Exception as problem:  # a bug here must not leave clients waiting for ever
                log.exception("step failed")
                for sequence in self._running:
                    if not sequence.ended:
                        self._tell(sequence, Update(error=problem))
                self._running.clear()
        if self._on_drained is not None:
            self._on_drained()

    def _wait_for_work(self) -> bool:
        """Sleeps while there is nothing to do; False once drained."""
        with self._changed:
            while not self._waiting and not self._running:
                self._gauge()
                if self._ends_at is not None:
                    return False
                self._changed.wait()
        return True

    def _step(self) -> None:
        self._drop_ended()
        self._admit()
        self._gauge()
        plan = self._plan()
        if not plan:
            return
        started = time.perf_counter()
        for sequence, chunk, logits in self._computed(plan):
            self.metrics.computed(len(chunk), in_prompt=sequence.in_prompt)
            self._take(sequence, logits)
        self.metrics.step_seconds.observe(time.perf_counter() - started)
        self._running = [one for one in self._running if not one.ended]

    def _drop_ended(self) -> None:
        """Lets go of those whose client has gone, or whose time is up."""
        now = time.monotonic()
        with self._changed:
            for sequence in (*self._waiting, *self._running):
                why = self._why_abort(sequence, now)
                if why is not None:
                    self._tell(sequence, Update(sequence.rest(), finish=why))
            self._waiting = deque(one for one in self._waiting if not one.ended)
            self._running = [one for one in self._running if not one.ended]

    def _why_abort(self, sequence: Sequence, now: float) -> Finish | None:
        if sequence.cancelled:
            return Finish("abort", why="cancelled")
        if self._ends_at is not None and now >= self._ends_at:
            return Finish("abort", why="shutdown")
        if now - sequence.arrived > self.limits.request_timeout:
            return Finish("abort", why="timeout")
        return None

    def _admit(self) -> None:
        """In order of arrival, but for a prompt that another computes: it waits to share its cache.

        With scores of the prompt asked for, every token of it has to be computed.
        """
        with self._changed:
            put_off: list[Sequence] = []
            while self._waiting and len(self._running) < self.limits.max_num_seqs:
                sequence = self._waiting.popleft()
                job = sequence.job
                shares = job.prompt_logprobs is None and self.prefixes.max_bytes > 0
                if shares and any(
                    one.in_prompt and one.job.prompt == job.prompt for one in self._running
                ):
                    put_off.append(sequence)
                    continue
                self._running.append(sequence)  # first, so that an error here has somebody to go to
                found = self.prefixes.find(job.prompt) if shares else None
                sequence.start(found or self.model.new_cache())
            self._waiting.extendleft(reversed(put_off))

    def _plan(self) -> list[tuple[Sequence, list[int]]]:
        """One token for everyone who decodes; prompts share the rest, first come first served."""
        decoding = [one for one in self._running if not one.in_prompt]
        plan = [(one, one.chunk(1)) for one in decoding]
        left = max(1, self.limits.max_num_batched_tokens - len(plan))
        for one in self._running:
            if one.in_prompt and left > 0:
                plan.append((one, one.chunk(left)))
                left -= len(plan[-1][1])
        return plan

    def _computed(
        self, plan: list[tuple[Sequence, list[int]]]
    ) -> list[tuple[Sequence, list[int], Array]]:
        """One forward pass; if it fails, one each, so that only those fail who have to."""
        try:
            return self._forward(plan)
        except Exception as problem:
            if len(plan) == 1:
                log.exception("forward pass failed")
                self._tell(plan[0][0], Update(error=problem))
                return []
        return [result for one in plan for result in self._computed([one])]

    def _forward(
        self, plan: list[tuple[Sequence, list[int]]]
    ) -> list[tuple[Sequence, list[int], Array]]:
        everything = any(one.wants_all_logits for one, _ in plan)
        recorders = [one.recorder for one, _ in plan]
        for recorder in recorders:
            if recorder is not None:
                recorder.clear()
        logits = self.model.batch(
            [chunk for _, chunk in plan],
            caches=[one.cache for one, _ in plan],
            last_only=not everything,
            traces=cast(Any, recorders) if any(one is not None for one in recorders) else None,
        )
        return [(one, chunk, rows) for (one, chunk), rows in zip(plan, logits, strict=True)]

    def _take(self, sequence: Sequence, logits: Array) -> None:
        if sequence.in_prompt and sequence.at_branch:
            self._keep(sequence)
        update = sequence.advance(logits)
        if update is None:
            return
        if update.finish is not None:
            self._keep(sequence)
        self._tell(sequence, update)

    def _keep(self, sequence: Sequence) -> None:
        """A copy for others; an answer does not depend on it."""
        try:
            self.prefixes.keep(sequence.tokens[: sequence.cache.length], sequence.cache)
        except MemoryError:
            log.exception("no room for a prefix")

    def _tell(self, sequence: Sequence, update: Update) -> None:
        if update.computed is not None:
            self.metrics.first_token(sequence, update.computed)
        if update.last:
            sequence.ended = True
            sequence.release()
            self.metrics.ended(sequence, update)
        try:
            sequence.deliver(update)
        except Exception:  # the event loop it goes to may be closed already
            log.exception("nobody takes an answer")
            sequence.cancelled = True

    def _gauge(self) -> None:
        self.metrics.gauge(len(self._running), len(self._waiting), self.prefixes.nbytes)
