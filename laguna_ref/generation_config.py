"""generation_config.json: how the checkpoint's authors sample, and where they stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from laguna_ref.checkpoint import Checkpoint
from laguna_ref.errors import ConfigError, InputError
from laguna_ref.sampling import Sampling

DEFAULT_MAX_TOKENS = 2048


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling, length and stop ids, checked."""

    sampling: Sampling
    max_tokens: int
    stop_ids: tuple[int, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> GenerationConfig:
        """What the file says; without it greedy, 2,048 tokens, the config's stop ids.

        Raises ConfigError for a value out of range.
        """
        raw = checkpoint.generation_config or {}
        file = checkpoint.path / "generation_config.json"
        stops = raw.get("eos_token_id")
        if stops is None:
            stops = list(checkpoint.config.eos_token_id)
        stops = stops if isinstance(stops, list) else [stops]
        if any(type(token) is not int for token in stops):
            raise ConfigError("must be token ids", file=file, key="eos_token_id", found=stops)
        try:
            max_tokens = int(_number(raw, "max_new_tokens", DEFAULT_MAX_TOKENS))
            # `do_sample: false` means greedy, whatever temperature stands beside it.
            if raw.get("do_sample", False):
                sampling = Sampling(
                    _number(raw, "temperature", 1.0),
                    int(_number(raw, "top_k", 0)),
                    _number(raw, "top_p", 1.0),
                )
            else:
                sampling = Sampling()
        except InputError as problem:
            raise ConfigError(problem.message, file=file, found=problem.found) from problem
        return cls(sampling, max_tokens, tuple(stops))


def _number(raw: dict[str, Any], key: str, default: float) -> float:
    value = raw.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise InputError(f"{key} must be a number from 0 to 1e9", found=value)
    return float(value)
