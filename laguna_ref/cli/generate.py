"""``laguna-ref generate``: continues a prompt."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.interrupt import interruptible
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import human, note, print_json
from laguna_ref.cli.prefill_bar import prefill_bar
from laguna_ref.cli.prompts import GivenPrompt, prompt_options, read_prompt
from laguna_ref.cli.sampling_options import SamplingOptions, sampling_options

if TYPE_CHECKING:
    from laguna_ref.memory_use import MemoryUse
    from laguna_ref.model import Laguna

NOTABLE = 1_000_000
"""Bytes read from disk that are worth a word."""


@dataclass
class _Run:
    """What happened, and when (seconds on a clock that only goes forward)."""

    started: float = field(default_factory=time.perf_counter)
    prefilled: float = 0.0
    ended: float = 0.0
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)


@click.command("generate", cls=ModelCommand)
@prompt_options
@sampling_options
@model_options
def command(
    options: ModelOptions,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
    sampling_asked: SamplingOptions,
) -> None:
    """Continue PROMPT as plain text, streamed to stdout; - reads it from stdin.

    Temperature, top-k, top-p, stop ids and the number of tokens come from the checkpoint's
    generation_config.json unless given here. A checkpoint without a tokenizer is given
    --token-ids and prints token ids.

    Without a prompt, continues the head of a small Python function.
    """
    from laguna_ref.memory_use import memory_use

    model = options.load()
    before = memory_use()
    asked = read_prompt(model, prompt, prompt_file, token_ids, bos)
    sampling = sampling_asked.resolved(model.checkpoint)
    _show_prompt(asked, options.as_json)
    run = _generate(model, asked, sampling, stream=not options.as_json)
    timings = _timings(run, asked, sampling)
    memory = memory_use().since(before)
    if options.as_json:
        print_json(
            {
                "prompt": asked.text,
                "prompt_tokens": asked.tokens,
                "tokens": run.tokens,
                "text": None if asked.tokenizer is None else "".join(run.pieces),
                "finish_reason": _finish_reason(run, asked, sampling, model),
                "timings": timings,
                "memory": memory.to_json(),
                "settings": options.settings(model) | sampling | {"bos": bos},
            }
        )
    note(
        f"prefill: {len(asked.tokens)} tokens, {_rate(timings['prefill_tokens_per_s'])}; "
        f"decode: {len(run.tokens)} tokens, {_rate(timings['decode_tokens_per_s'])}"
        f"{_from_disk(memory)}"
    )


def _generate(model: Laguna, asked: GivenPrompt, sampling: dict[str, Any], *, stream: bool) -> _Run:
    """Runs the model; writes each piece of text to stdout as soon as it is known."""
    from laguna_ref.generate import generate

    decoder = None if asked.tokenizer is None else asked.tokenizer.stream()
    run = _Run()

    def emit(piece: str) -> None:
        run.pieces.append(piece)
        if stream and piece:
            click.echo(piece, nl=False)
            sys.stdout.flush()

    with prefill_bar(model, len(asked.tokens)) as bar:

        def on_prefill(done: int, total: int) -> None:
            bar(done, total)
            if done == total:
                run.prefilled = time.perf_counter()

        tokens = generate(model, asked.tokens, on_prefill=on_prefill, **sampling)
        # The bar goes with the prefill: the first token comes out of it.
        tokens = itertools.chain(list(itertools.islice(tokens, 1)), tokens)
    with interruptible() as check_for_interrupt:
        for token in tokens:
            check_for_interrupt()
            run.tokens.append(token)
            if decoder is not None:
                emit(decoder.push(token))
            else:
                emit(f"{token}" if len(run.tokens) == 1 else f" {token}")
    run.ended = time.perf_counter()
    emit(decoder.finish() if decoder else "")
    if stream and (decoder is None or sys.stdout.isatty()) and not _ends_line(run.pieces):
        click.echo()
    return run


def _ends_line(pieces: list[str]) -> bool:
    return "".join(pieces[-2:]).endswith("\n")


def _show_prompt(asked: GivenPrompt, as_json: bool) -> None:
    """On a terminal the continuation follows its prompt, which is dimmed and on stderr."""
    if asked.text and not as_json and sys.stdout.isatty() and sys.stderr.isatty():
        click.echo(click.style(asked.text, dim=True), nl=False, err=True)


def _finish_reason(run: _Run, asked: GivenPrompt, sampling: dict[str, Any], model: Laguna) -> str:
    """``length`` (max_tokens), ``context`` (max_position_embeddings) or ``stop`` (a stop id)."""
    if len(run.tokens) == sampling["max_tokens"]:
        return "length"
    # The last token is generated but never computed, so one more than the context comes out.
    full = len(asked.tokens) + len(run.tokens) - 1 == model.config.max_position_embeddings
    return "context" if full else "stop"


def _timings(run: _Run, asked: GivenPrompt, sampling: dict[str, Any]) -> dict[str, float | None]:
    """Seconds and tokens per second; a token sampled is not yet a token computed.

    The first token comes out of the prefill. Of the others each took one forward pass, and a
    stop token, though not shown, one more.
    """
    prefill, decode = run.prefilled - run.started, run.ended - run.prefilled
    stopped = len(run.tokens) < sampling["max_tokens"]
    passes = len(run.tokens) - (0 if stopped else 1)
    return {
        "prefill_s": prefill,
        "decode_s": decode,
        "prefill_tokens_per_s": len(asked.tokens) / prefill if prefill > 0 else None,
        "decode_tokens_per_s": passes / decode if passes > 0 and decode > 0 else None,
    }


def _from_disk(memory: MemoryUse) -> str:
    """Weights that were not in memory, and how often a thread had to wait for one of them."""
    if memory.read_bytes < NOTABLE:
        return ""
    read = human(memory.read_bytes, "B")
    return f"; from disk: {read}, {memory.major_faults} major faults"


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.1f} tokens/s"
