"""What a request is answered with: the model and how it is served."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from laguna_ref import __version__
from laguna_ref.chat.tokenizer import Tokenizer
from laguna_ref.generation_config import GenerationConfig
from laguna_ref.model import Laguna
from laguna_ref.sampling import Sampling
from laguna_ref.server import errors
from laguna_ref.server.engine import Engine
from laguna_ref.server.job import Job
from laguna_ref.server.metrics import Metrics
from laguna_ref.server.requests import Sampled

if TYPE_CHECKING:
    from laguna_ref.chat.template import Template


@dataclass(frozen=True)
class Settings:
    """How the model is served."""

    names: tuple[str, ...]
    """Under which it answers; the first is the one it calls itself."""
    max_logprobs: int = 20
    """Most tokens that ``logprobs`` may ask for; -1: as many as there are."""
    parse_reasoning: bool = True
    parse_tools: bool = True
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of ``chat_template_kwargs``."""
    prompt_mode: str = "safe"
    api_keys: tuple[str, ...] = ()
    local_only: bool = False
    """Whether requests must name this machine as their host: without a key, a web page whose name
    has been pointed at 127.0.0.1 could otherwise read answers."""
    max_body_bytes: int = 8 * 2**20
    body_timeout: float = 30.0
    """Seconds in which the body of a request has to arrive."""


@dataclass(frozen=True)
class Service:
    """Everything an endpoint needs."""

    model: Laguna
    tokenizer: Tokenizer | None
    template: Template | None
    engine: Engine
    metrics: Metrics
    settings: Settings
    defaults: GenerationConfig
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """Of version, config, numerics, engine and cache; not of the weights, too many to hash."""
        model = self.model
        kinds = "".join("8" if kv.fp8 else "f" for kv in model.kv_formats)
        engine = getattr(model.engine, "__name__", type(model.engine).__name__)
        parts = repr((model.config, model.numerics.name, model.numerics.dequant, engine, kinds))
        digest = hashlib.sha256(parts.encode()).hexdigest()[:12]
        return f"laguna_ref-{__version__}-{model.numerics.name}-{digest}"

    def require_model(self, name: str | None) -> str:
        """The name under which an answer goes out; raises ApiError for one not served."""
        if name is None or name == "":
            return self.settings.names[0]
        if name not in self.settings.names:
            raise errors.ApiError(
                404, f"the model `{errors.printable(name)[:100]}` does not exist", param="model",
                code="model_not_found",
            )  # fmt: skip
        return name

    def require_tokenizer(self, param: str) -> Tokenizer:
        """Raises ApiError where the checkpoint has none."""
        if self.tokenizer is None:
            raise errors.bad_request("the checkpoint has no tokenizer: send token ids", param)
        return self.tokenizer

    def logprobs_within(self, count: int | None, param: str) -> int | None:
        """How many likeliest tokens to show; raises ApiError for too many."""
        most, all_of_them = self.settings.max_logprobs, self.model.config.vocab_size
        if count is None:
            return None
        if most < 0:
            return all_of_them if count < 0 else min(count, all_of_them)
        if not 0 <= count <= most:
            raise errors.bad_request(f"must be 0 to {most}, found {count}", param)
        return count

    def jobs(
        self, body: Sampled, prompts: Sequence[Sequence[int]], *, default_max_tokens: int | None,
        **more: Any,
    ) -> list[Job]:  # fmt: skip
        """One job for each prompt and each of the ``n`` answers; answer i draws with seed + i.

        What a request leaves out comes from generation_config.json, as in vLLM.
        """
        self.engine.require_room(len(prompts) * (body.n or 1))  # before any of them is made
        mine = self.defaults.sampling
        sampling = Sampling(
            mine.temperature if body.temperature is None else body.temperature,
            mine.top_k if body.top_k is None else max(0, body.top_k),
            mine.top_p if body.top_p is None else body.top_p,
        )
        seed = secrets.randbits(48) if body.seed is None else body.seed % 2**64
        stop_ids = frozenset(body.stop_token_ids or ())
        if not body.ignore_eos:
            stop_ids |= frozenset(self.defaults.stop_ids)
        return [
            Job(
                prompt=tuple(prompt),
                sampling=sampling,
                seed=(seed + answer) % 2**64,
                max_tokens=self._max_tokens(body, len(prompt), default_max_tokens),
                stop=tuple(body.stop or ()),
                stop_ids=stop_ids,
                include_stop=bool(body.include_stop_str_in_output),
                skip_special=body.skip_special_tokens is not False,
                **more,
            )
            for prompt in prompts
            for answer in range(body.n or 1)
        ]

    def _max_tokens(self, body: Sampled, prompt: int, default: int | None) -> int:
        """Raises ApiError for a prompt, or an answer asked for, that has no room."""
        # The last token generated is never computed, so it needs no place.
        room = self.engine.limits.max_model_len - prompt + 1
        limit = self.engine.limits.max_model_len
        if room < 1:
            raise errors.bad_request(
                f"the prompt has {prompt} tokens, the model's context {limit}", "prompt",
                "context_length_exceeded",
            )  # fmt: skip
        asked = body.most_tokens
        if asked is None:
            return min(room, self.defaults.max_tokens if default is None else default)
        if asked > room:
            raise errors.bad_request(
                f"the prompt has {prompt} tokens and max_tokens asks for {asked} more, but the "
                f"model's context has {limit}", "max_tokens", "context_length_exceeded",
            )  # fmt: skip
        return asked
