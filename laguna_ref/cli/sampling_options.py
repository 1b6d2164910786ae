"""Options of the commands that generate: how to choose tokens, and where to stop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from laguna_ref.checkpoint import Checkpoint

_OPTIONS = {
    "max_tokens": click.option(
        "--max-tokens", type=click.IntRange(min=0), help="Most tokens to generate."
    ),
    "temperature": click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        help="0 is greedy: always the likeliest token.",
    ),
    "top_k": click.option(
        "--top-k", type=click.IntRange(min=0), help="Only the K likeliest tokens; 0: all."
    ),
    "top_p": click.option(
        "--top-p", type=float, help="Only the likeliest that together reach P; 1: all."
    ),
    "seed": click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sampling."
    ),
    "stop_id": click.option(
        "--stop-id", type=click.IntRange(min=0), multiple=True, help="Token to stop at; repeatable."
    ),
}
"""By the field of SamplingOptions that each fills."""


@dataclass(frozen=True)
class SamplingOptions:
    """What was asked for; None leaves the choice to the checkpoint's generation_config.json."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop_id: tuple[int, ...] = ()

    def resolved(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The keywords of ``laguna_ref.generate``, those not asked for as the checkpoint says."""
        from laguna_ref.generation_config import GenerationConfig

        config = GenerationConfig.of(checkpoint)
        given = {
            "max_tokens": (self.max_tokens, config.max_tokens),
            "temperature": (self.temperature, config.sampling.temperature),
            "top_k": (self.top_k, config.sampling.top_k),
            "top_p": (self.top_p, config.sampling.top_p),
        }
        return {
            name: default if asked is None else asked for name, (asked, default) in given.items()
        } | {"seed": self.seed, "stop_ids": list(self.stop_id or config.stop_ids)}


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command gets them as ``sampling_asked``, a SamplingOptions."""

    @functools.wraps(function)
    def wrapper(*args: Any, **values: Any) -> Any:
        asked = SamplingOptions(**{name: values.pop(name) for name in _OPTIONS})
        return function(*args, sampling_asked=asked, **values)

    command: Callable[..., Any] = wrapper
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command
