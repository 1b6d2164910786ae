"""``laguna-ref explain kv``: what an FP8 cache costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.explain.drawing import (
    LAYERS_OPTION,
    PLOT_OPTION,
    kind,
    number,
    require_plot,
    save_plot,
    say,
    say_left_out,
    shown_layers,
    table,
)
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import human, print_json
from laguna_ref.cli.prefill_bar import prefill_bar
from laguna_ref.cli.prompts import GivenPrompt, prompt_options, read_prompt

if TYPE_CHECKING:
    from laguna_ref.explain.kv_view import FP8Error, KVView, LayerKV


@click.command("kv", cls=ModelCommand)
@prompt_options
@LAYERS_OPTION
@PLOT_OPTION
@model_options
def kv(
    options: ModelOptions,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
    layers: str | None,
    plot: Path | None,
) -> None:
    """Error, saturation and scales of keys and values in FP8, layer by layer, over PROMPT.

    Of layers whose cache is float, what FP8 would do with the same scales.
    """
    require_plot(plot)
    model = options.load()
    asked = read_prompt(model, prompt, prompt_file, token_ids, bos)
    shown = shown_layers(range(len(model.config.layers)), layers)
    from laguna_ref import explain
    from laguna_ref.explain import plots

    with prefill_bar(model, len(asked.tokens)) as advance:
        view = explain.kv(model, asked.tokens, on_prefill=advance)
    if options.as_json:
        print_json(describe(view, asked) | {"settings": options.settings(model) | {"bos": bos}})
    else:
        _print(view, shown, model.config.max_position_embeddings)
    save_plot(plot, lambda: plots.kv(view))


def describe(view: KVView, asked: GivenPrompt) -> dict[str, Any]:
    """What ``--json`` prints."""

    def errors(one: FP8Error) -> dict[str, Any]:
        return asdict(one) | {"range_used": one.range_used}

    return {
        "schema": 1,
        "prompt": asked.text,
        "prompt_tokens": asked.tokens,
        "layers": [
            {
                "layer": one.layer.index,
                "attention": one.layer.attention,
                "cache": "fp8" if one.fp8 else "float",
                "keys": errors(one.keys),
                "values": errors(one.values),
            }
            for one in view.layers
        ],
        "bytes": view.nbytes,
        "bytes_at_full_context": view.full_nbytes,
    }


def _print(view: KVView, shown: list[int], context: int) -> None:
    table(
        ["layer", "kind", "cache", ">K scale", ">range", ">error", ">V scale", ">range",
         ">error", ">lost"],
        (_row(view.layers[index]) for index in shown),
        title=f"Keys and values of {len(view.tokens)} tokens through FP8",
    )  # fmt: skip
    say_left_out(range(len(view.layers)), shown)
    say("range: greatest value over 448 times the scale; above 100% saturates. error:\n"
        "RMS over RMS. lost: values that saturate or come back as zero.")  # fmt: skip
    for title, sizes in ((f"{len(view.tokens):,} tokens", view.nbytes),
                         (f"{context:,} tokens", view.full_nbytes)):  # fmt: skip
        parts = ", ".join(f"{k.removesuffix('_attention')} {human(n, 'B')}"
                          for k, n in sizes.items())  # fmt: skip
        say(f"cache of {title}: {human(sum(sizes.values()), 'B')} ({parts})")


def _row(one: LayerKV) -> list[Any]:
    cells: list[Any] = [str(one.layer.index), kind(one.layer), "fp8" if one.fp8 else "float"]
    for side in (one.keys, one.values):
        cells += [number(side.scale), f"{side.range_used:.1%}", f"{side.relative_error:.1%}"]
    sides = (one.keys, one.values)
    return [*cells, str(sum(side.saturated + side.vanished for side in sides))]
