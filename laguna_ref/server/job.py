"""What the engine is asked for, and what it tells: plain values, no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laguna_ref.sampling import Sampling


@dataclass(frozen=True)
class Job:
    """One sequence to continue."""

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    stop_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    """Whether a stop text is part of the answer."""
    skip_special: bool = True
    """Whether the text leaves out special tokens (``〈|EOS|〉``; ``</think>`` is none of them)."""
    logprobs: int | None = None
    """How many of the likeliest tokens to show for each token generated; 0: its own alone."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but the first."""
    trace: bool = False
    """Whether to tell which experts each token was computed by."""
    keep_at: tuple[int, ...] = ()
    """Lengths of the prompt that other prompts are likely to share."""


@dataclass(frozen=True)
class Scored:
    """Log-probabilities at one place, in nats, of the logits before temperature."""

    token: int
    logprob: float
    rank: int
    """1 for the likeliest; equal ones share the worst of their ranks, as in vLLM."""
    top: tuple[tuple[int, float], ...]
    """The likeliest, in descending order; equal ones in the order of their ids."""


Experts = dict[int, list[tuple[int, float]]]
"""Layer -> chosen experts and their weights, in descending order of selection score."""


@dataclass(frozen=True)
class Token:
    """One token generated."""

    id: int
    text: str
    """Its own text; that of a character spread over several tokens comes with the last."""
    scored: Scored | None = None
    experts: Experts | None = None
    """Of the forward pass whose logits it was drawn from."""


@dataclass(frozen=True)
class Computed:
    """The prompt is computed."""

    cached_tokens: int
    """Of the prompt, taken from the prefix cache."""
    scores: tuple[Scored, ...] | None = None
    """One for each token of the prompt but the first, where asked for."""


@dataclass(frozen=True)
class Finish:
    """Why it ended."""

    reason: Literal["stop", "length", "abort"]
    stop: str | int | None = None
    """The stop text or the stop id of the request; None for the model's own end of turn."""
    why: Literal["", "cancelled", "timeout", "shutdown"] = ""
    """Of an abort."""


@dataclass(frozen=True)
class Update:
    """What is new about a sequence after a step."""

    text: str = ""
    """Part of the answer that is certain: what may become a stop text is held back."""
    token: Token | None = None
    computed: Computed | None = None
    finish: Finish | None = None
    error: BaseException | None = None
    """The forward pass failed; nothing more follows."""

    @property
    def last(self) -> bool:
        """Whether nothing more follows."""
        return self.finish is not None or self.error is not None
