"""Bodies of requests: what is read, what is ignored, and what is refused.

Types are strict (no ``"0.5"`` for a number). Unknown fields are ignored, as OpenAI-compatible
servers do; parameters that would change the answer and are not implemented are refused unless
they have the value that changes nothing (``NEUTRAL``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from laguna_ref.server import errors

INT64 = 2**63
MAX_N = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,),
    "length_penalty": (1,), "min_p": (0,), "min_tokens": (0,), "best_of": (1,),
    "use_beam_search": (False,), "logit_bias": ({},), "bad_words": ([],),
    "allowed_token_ids": (), "logprob_token_ids": (), "suffix": ("",), "prompt_embeds": (),
    "response_format": ({"type": "text"},), "structured_outputs": (), "guided_json": (),
    "guided_regex": (), "guided_choice": (), "guided_grammar": (), "truncate_prompt_tokens": (),
    "functions": ([],), "function_call": ("none", "auto"), "continue_final_message": (False,),
    "add_generation_prompt": (True,), "chat_template": (), "documents": ([],), "audio": (),
    "modalities": (["text"],), "reasoning_effort": (), "include_reasoning": (True,),
    "thinking_token_budget": (-1,), "repetition_detection": (), "web_search_options": (),
    "logits_processors": ([],), "mm_processor_kwargs": ({},), "watermarking": (False,),
}  # fmt: skip
"""Parameters not implemented, and the values (beside null) that change nothing."""
HINTS = {
    "reasoning_effort": "use chat_template_kwargs.enable_thinking",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "chat_template": "a template comes from the checkpoint or from --chat-template",
}

Real = Annotated[float, Field(allow_inf_nan=False)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=1000)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class Strict(BaseModel):
    """Fields are of their type and nothing else; those unknown are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class StreamOptions(Strict):
    """``stream_options``."""

    include_usage: bool | None = None


class LagunaOptions(Strict):
    """``laguna``: what no other server has."""

    model_config = ConfigDict(strict=True, extra="forbid")
    trace: bool = False
    top: Annotated[int, Field(ge=1, le=20)] = 8
    """How many of the likeliest tokens a trace shows."""


class Sampled(Strict):
    """What completions and chat have in common."""

    model: str | None = None
    temperature: Annotated[Real, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Real, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stop: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Ids | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=-1, lt=2**31)] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def most_tokens(self) -> int | None:
        """The limit on tokens generated."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(Sampled):
    """``POST /v1/completions``."""

    prompt: Any
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=-1, lt=2**31)] | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """Texts, or lists of token ids; raises ApiError for anything else."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given, list) and given:
            if all(isinstance(one, str) for one in given):
                return given
            if all(type(one) is int for one in given):
                return [given]
            if all(isinstance(one, list) and one for one in given) and all(
                type(token) is int for one in given for token in one
            ):
                return given
        raise errors.bad_request(
            "must be a text, a list of texts, a list of token ids or a list of such lists, "
            "none of them empty", "prompt",
        )  # fmt: skip


class NamedFunction(Strict):
    """The function of a named ``tool_choice``."""

    name: str


class NamedTool(Strict):
    """A named ``tool_choice``."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ChatRequest(Sampled):
    """``POST /v1/chat/completions``."""

    messages: Any
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    tools: Any = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    laguna: LagunaOptions | None = None

    @property
    def most_tokens(self) -> int | None:
        """The limit on tokens generated; the newer name wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Body = TypeVar("Body", bound=Sampled)


def parse(kind: type[Body], raw: bytes) -> Body:
    """A checked body; raises ApiError naming the field."""
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as problem:
        raise errors.bad_request(f"the body is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise errors.bad_request("the body must be a JSON object")
    _require_implemented(value)
    try:
        return kind.model_validate(value)
    except ValidationError as problem:
        raise _of_validation(problem) from problem


def _require_implemented(body: dict[str, Any]) -> None:
    for name, neutral in NEUTRAL.items():
        value = body.get(name)
        if value is None or any(_same(value, one) for one in neutral):
            continue
        hint = f"; {HINTS[name]}" if name in HINTS else ""
        raise errors.bad_request(f"{name} is not implemented{hint}", name, "not_implemented")


def _same(value: Any, other: Any) -> bool:
    """Equal, where true is no number."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _of_validation(problem: ValidationError) -> errors.ApiError:
    first = problem.errors(include_url=False, include_context=False)[0]
    place = [str(part) for part in first["loc"]]
    name = place[0] if place else None
    # Alternatives of a union have parts of the path of their own: the field alone is named.
    place = place[:1] if name == "tool_choice" else place
    text = "field required" if first["type"] == "missing" and len(place) == 1 else first["msg"]
    message = errors.printable(f"{'.'.join(place)}: {text}" if place else text)
    return errors.bad_request(message, name if name is None else errors.printable(name))
