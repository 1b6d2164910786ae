"""``laguna-ref serve``: an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options_but
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.chat.template import Template
    from laguna_ref.model import Laguna

PARSERS = ("poolside_v1", "none")


@click.command("serve", cls=ModelCommand)
@click.argument("model", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
    help="0: any free one, told in the log.",
)  # fmt: skip
@click.option(
    "--api-key", "api_keys", multiple=True, envvar="LAGUNA_API_KEY", metavar="KEY",
    help="Bearer key that requests need; repeatable. Required unless --host is local. "
    "Environment: LAGUNA_API_KEY.",
)  # fmt: skip
@click.option(
    "--served-model-name", "names", multiple=True, metavar="NAME",
    help="Name in requests and answers; repeatable.  [default: MODEL]",
)  # fmt: skip
@click.option(
    "--max-model-len", type=click.IntRange(min=1), metavar="N",
    help="Tokens of prompt and answer.  [default: max_position_embeddings]",
)  # fmt: skip
@click.option(
    "--max-num-seqs", type=click.IntRange(min=1), default=8, show_default=True,
    help="Answers computed at a time.",
)  # fmt: skip
@click.option(
    "--max-num-batched-tokens", type=click.IntRange(min=1), default=512, show_default=True,
    help="Tokens computed in one step.",
)  # fmt: skip
@click.option(
    "--max-waiting", type=click.IntRange(min=0), default=128, show_default=True,
    help="Answers that wait for their turn; more are refused with 429.",
)  # fmt: skip
@click.option(
    "--max-logprobs", type=click.IntRange(min=-1), default=20, show_default=True,
    help="Most likeliest tokens a request may ask for; -1: as many as there are.",
)  # fmt: skip
@click.option(
    "--prefix-cache-mb", type=click.IntRange(min=0), default=512, show_default=True,
    help="Memory for caches of prompts that begin the same.",
)  # fmt: skip
@click.option(
    "--request-timeout", type=click.FloatRange(min=0, min_open=True), default=600.0,
    show_default=True, help="Seconds that an answer may take, waiting included.",
)  # fmt: skip
@click.option(
    "--grace", type=click.FloatRange(min=0), default=10.0, show_default=True,
    help="Seconds that running answers have left after SIGTERM.",
)  # fmt: skip
@click.option(
    "--max-body-mb", type=click.IntRange(min=1), default=8, show_default=True,
    help="Largest body of a request.",
)  # fmt: skip
@click.option(
    "--reasoning-parser", type=click.Choice(PARSERS), default="poolside_v1", show_default=True,
    help="none: thinking stays in the content.",
)  # fmt: skip
@click.option(
    "--tool-call-parser", type=click.Choice(PARSERS), default="poolside_v1", show_default=True,
    help="none: tool calls stay in the content.",
)  # fmt: skip
@click.option(
    "--enable-auto-tool-choice", is_flag=True, help="Always so; accepted for vLLM's recipes."
)
@click.option(
    "--trust-remote-code", is_flag=True, help="No code of a checkpoint is ever run; accepted."
)
@click.option(
    "--chat-template", metavar="FILE|LAYOUT",
    help="A Jinja file, or xs2 or xs2.1.  [default: the checkpoint's own]",
)  # fmt: skip
@click.option(
    "--default-chat-template-kwargs", "template_kwargs", metavar="JSON", default="{}",
    help="""Of the template, unless a request says otherwise: '{"enable_thinking": true}'.""",
)  # fmt: skip
@click.option(
    "--prompt-mode", type=click.Choice(["safe", "released"]), default="safe", show_default=True,
    help="released: control tokens typed in a message count as such, as in the released engines.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(["json", "text"]), default="json", show_default=True,
    help="Of the lines on stderr.",
)  # fmt: skip
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
    show_default=True, help="Least important lines to show.",
)  # fmt: skip
@model_options_but("model", "as_json")
def command(
    options: ModelOptions,
    model: str | None,
    host: str,
    port: int,
    log_format: str,
    log_level: str,
    grace: float,
    enable_auto_tool_choice: bool,
    trust_remote_code: bool,
    **given: Any,
) -> None:
    """Serve MODEL (default: laguna-tiny) over HTTP in the manner of OpenAI and vLLM.

    The flags of vLLM's recipe for Laguna mean the same here. Parsers are on unless turned off.
    See docs/serve.md.
    """
    try:
        from laguna_ref.server.run import Address, require_key_unless_local, serve
    except ModuleNotFoundError as problem:
        raise InputError(
            f"{problem.name} is not installed", expected="pip install 'laguna-ref[serve]'"
        ) from problem
    import dataclasses

    require_key_unless_local(host, tuple(given["api_keys"]))
    service = _service(dataclasses.replace(options, model=model).load(), model, given)
    serve(service, Address(host, port, grace), log_format, log_level)


def _service(model: Laguna, name: str | None, given: dict[str, Any]) -> Any:
    from laguna_ref.chat.tokenizer import TOKENIZER_FILE, Tokenizer
    from laguna_ref.generation_config import GenerationConfig
    from laguna_ref.server.engine import Engine, Limits
    from laguna_ref.server.metrics import Metrics
    from laguna_ref.server.service import Service, Settings

    folder = model.checkpoint.path
    tokenizer = Tokenizer.from_folder(folder) if (folder / TOKENIZER_FILE).exists() else None
    limits = Limits(
        max_model_len=_max_model_len(model, given["max_model_len"]),
        max_num_seqs=given["max_num_seqs"],
        max_waiting=given["max_waiting"],
        max_num_batched_tokens=given["max_num_batched_tokens"],
        prefix_cache_bytes=given["prefix_cache_mb"] * 2**20,
        request_timeout=given["request_timeout"],
    )
    settings = Settings(
        names=given["names"] or (name or "laguna-tiny",),
        max_logprobs=given["max_logprobs"],
        parse_reasoning=given["reasoning_parser"] != "none",
        parse_tools=given["tool_call_parser"] != "none",
        template_kwargs=_template_kwargs(given["template_kwargs"]),
        prompt_mode=given["prompt_mode"],
        api_keys=_checked_keys(given["api_keys"]),
        local_only=not given["api_keys"],
        max_body_bytes=given["max_body_mb"] * 2**20,
    )
    metrics = Metrics()
    return Service(
        model=model,
        tokenizer=tokenizer,
        template=_template(given["chat_template"], folder),
        engine=Engine(model, tokenizer, limits, metrics),
        metrics=metrics,
        settings=settings,
        defaults=GenerationConfig.of(model.checkpoint),
    )


def _max_model_len(model: Laguna, asked: int | None) -> int:
    most = model.config.max_position_embeddings
    if asked is not None and asked > most:
        raise InputError(
            "more than the model has", key="--max-model-len", expected=f"at most {most}",
            found=asked,
        )  # fmt: skip
    return asked or most


def _checked_keys(keys: Sequence[str]) -> tuple[str, ...]:
    if any(not key.strip() for key in keys):
        raise InputError("a key must not be empty", key="--api-key")
    return tuple(key.strip() for key in keys)


def _template_kwargs(text: str) -> dict[str, Any]:
    """What every request would be refused for is refused at the start."""
    from laguna_ref.chat.prompt import RESERVED

    key, value = "--default-chat-template-kwargs", _json_object(text)
    for name in RESERVED & set(value):
        raise InputError("may not be set", key=key, found=name)
    if not isinstance(value.get("enable_thinking", False), bool):
        raise InputError("enable_thinking must be true or false", key=key, found=text)
    return value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as problem:
        raise InputError(
            f"not JSON ({problem})", key="--default-chat-template-kwargs", found=text
        ) from problem
    if not isinstance(value, dict):
        raise InputError("not a JSON object", key="--default-chat-template-kwargs", found=text)
    return value


def _template(chosen: str | None, folder: Path) -> Template:
    from laguna_ref.chat.layouts import LAYOUTS
    from laguna_ref.chat.template import Template

    if chosen is None:
        return Template.from_folder(folder)
    if chosen in LAYOUTS:
        return Template.builtin(chosen)
    return Template.from_file(chosen, folder)
