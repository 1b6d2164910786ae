"""What ``/metrics`` shows, in Prometheus' text format."""

from __future__ import annotations

import math
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from laguna_ref.server.job import Computed, Update
from laguna_ref.server.sequence import Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LONGEST_RETRY = 60


class Metrics:
    """Counters of one server; ``text`` is what a scraper reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._mean_seconds = 1.0  # of a request, for Retry-After
        self.running = self._gauge("requests_running", "Sequences in the batch.")
        self.waiting = self._gauge("requests_waiting", "Sequences that wait for a place in it.")
        self.prefix_bytes = self._gauge("prefix_cache_bytes", "Key/value caches kept for prompts.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts computed.")
        self.cached_tokens = self._counter(
            "prefix_cache_hit_tokens", "Tokens of prompts taken from the prefix cache."
        )
        self.generated_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.finished = self._counter("requests_finished", "Sequences that ended.", "reason")
        self.responses = self._counter("http_responses", "Answers sent.", "path", "status")
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self.request_seconds = self._histogram(
            "request_seconds", "From a request's arrival to its end."
        )
        self.step_seconds = self._histogram("step_seconds", "One forward pass and its sampling.")

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self.registry)

    def gauge(self, running: int, waiting: int, prefix_bytes: int) -> None:
        """Takes in how things stand."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.prefix_bytes.set(prefix_bytes)

    def computed(self, tokens: int, *, in_prompt: bool) -> None:
        """Counts the tokens of a chunk."""
        if in_prompt:
            self.prompt_tokens.inc(tokens)

    def first_token(self, sequence: Sequence, computed: Computed) -> None:
        """A prompt is computed."""
        self.cached_tokens.inc(computed.cached_tokens)
        self.first_token_seconds.observe(time.monotonic() - sequence.arrived)

    def ended(self, sequence: Sequence, update: Update) -> None:
        """A sequence leaves."""
        seconds = time.monotonic() - sequence.arrived
        reason = "error" if update.finish is None else update.finish.why or update.finish.reason
        self.finished.labels(reason).inc()
        self.generated_tokens.inc(sequence.generated)
        self.request_seconds.observe(seconds)
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def seconds_to_wait(self, queued: int, places: int) -> int:
        """After how long a place in the queue is likely to be free."""
        expected = self._mean_seconds * queued / places / 2
        return max(1, min(LONGEST_RETRY, math.ceil(expected)))

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"laguna_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"laguna_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"laguna_{name}", text, buckets=SECONDS, registry=self.registry)
