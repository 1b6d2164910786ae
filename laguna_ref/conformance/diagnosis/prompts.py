"""Prompts that tell faults apart: short, around the edge of a window, at far positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.asking import Asker
from laguna_ref.conformance.backend import Backend
from laguna_ref.conformance.diagnosis.misfit import Observation
from laguna_ref.conformance.partial_judge import is_partial

SEED = 0
SHORT = 24
BEYOND_WINDOW = 16
LONGEST = 160
"""Tokens; a window wider than this is not crossed, which would take minutes for every fault."""
FAR = 8


@dataclass(frozen=True)
class Probe:
    """A prompt that is put to a backend, in the shape of a golden's case."""

    name: str
    tokens: tuple[int, ...]
    positions: tuple[int, ...] | None = None


def drawn(config: LagunaConfig, seed: int = SEED) -> list[Probe]:
    """Random tokens, the same for every run of one seed."""
    random = np.random.default_rng(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random.integers(0, config.vocab_size, count).tolist())

    context = config.max_position_embeddings
    prompts = [Probe("short", tokens(min(SHORT, context)))]
    windows = [spec.window for spec in config.layers if spec.window is not None]
    count = min(windows, default=LONGEST) + BEYOND_WINDOW
    if count <= min(LONGEST, context):
        prompts.append(Probe("beyond the window", tokens(count)))
    first = context // 2
    if first > LONGEST:
        prompts.append(Probe("far", tokens(FAR), tuple(range(first, first + FAR))))
    return prompts


class Asked(NamedTuple):
    """What came of all prompts."""

    observations: list[Observation]
    left_out: list[str]
    """Prompts that the backend cannot be asked, and why."""
    failed: list[str]
    """Prompts that it was asked and did not answer, or not wholly, and why."""


def ask(backend: Backend, config: LagunaConfig) -> Asked:
    """What the backend computes for each prompt it can be asked, and what it could not."""
    prompts = drawn(config)
    recorded = getattr(backend, "prompts", None)
    if recorded is not None:
        prompts = [Probe(f"dump {at}", *each) for at, each in enumerate(recorded())]
    asker = Asker(backend, config)
    asked = Asked([], [], [])
    for prompt in prompts:
        reason = asker.cannot(prompt)
        if reason is not None:
            asked.left_out.append(f"{prompt.name}: {reason}")
            continue
        answer = asker.ask(prompt)
        if answer.problem is not None:
            asked.failed.append(f"{prompt.name}: {answer.problem}")
        if answer.points:
            asked.observations.append(Observation(
                answer.tokens, answer.positions, answer.points, is_partial(answer)
            ))  # fmt: skip
    return asked
