"""``laguna-ref explain diff``: two models side by side over depth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.explain.drawing import (
    LAYERS_OPTION,
    PLOT_OPTION,
    bar_and,
    kind,
    named,
    number,
    require_plot,
    save_plot,
    say,
    say_left_out,
    shown_layers,
    table,
)
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import print_json
from laguna_ref.cli.prefill_bar import prefill_bar
from laguna_ref.cli.prompts import GivenPrompt, prompt_options, read_prompt

if TYPE_CHECKING:
    from laguna_ref.explain.diff_view import DiffView, LayerDiff
    from laguna_ref.model import Laguna
    from laguna_ref.numerics import Array

LEAST = 1e-8
"""Relative errors from here to 1 fill a bar, in equal steps of ten."""


@click.command("diff", cls=ModelCommand)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@prompt_options
@LAYERS_OPTION
@PLOT_OPTION
@model_options
def diff(
    options: ModelOptions,
    a: str,
    b: str,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
    layers: str | None,
    plot: Path | None,
) -> None:
    """Where B parts from A over PROMPT: error by layer, flipped experts, KL at the head.

    A side is terms joined by commas, each changing one thing of what the options say: base,
    float64, float32, bfloat16, kv=float, kv=fp8, skip=0-39, engine=numpy, dequant=bf16,
    fault:NAME, fault:NAME=VALUE. For instance: base fault:rope.scaling_ignored, or
    float64 bfloat16,kv=float. Names of faults are listed in docs/oracle-power.md.
    """
    require_plot(plot)
    first, second = _side(options, a), _side(options, b)
    asked = read_prompt(first, prompt, prompt_file, token_ids, bos)
    shown = shown_layers(range(len(first.config.layers)), layers)
    from laguna_ref import explain
    from laguna_ref.explain import plots

    with prefill_bar(first, len(asked.tokens)) as advance:
        view = explain.diff(first, second, asked.tokens, on_prefill=advance)
    if options.as_json:
        settings = {
            "a": options.settings(first) | {"spelled": a},
            "b": options.settings(second) | {"spelled": b},
            "bos": bos,
        }
        print_json(describe(view, asked) | {"settings": settings})
    else:
        _print(view, asked, shown, a, b)
    save_plot(plot, lambda: plots.diff(view, a, b))


def _side(options: ModelOptions, spelled: str) -> Laguna:
    from laguna_ref.explain import side

    chosen = {} if options.engine is None else {"engine": options.engine}
    return side(
        spelled,
        options.model,
        numerics=options.numerics,
        dequant=options.dequant,
        kv_cache=options.kv_cache,
        kv_cache_skip_layers=options.kv_cache_skip_layers,
        threads=options.threads,
        ignore_config_keys=options.ignore_config_key,
        **chosen,
    )


def describe(view: DiffView, asked: GivenPrompt) -> dict[str, Any]:
    """What ``--json`` prints; errors are relative, an infinite one is null."""

    def summary(errors: Array) -> dict[str, Any]:
        return {"mean": _finite(errors.mean()), "greatest": _finite(errors.max()),
                "at": int(errors.argmax())}  # fmt: skip

    return {
        "schema": 1,
        "prompt": asked.text,
        "prompt_tokens": asked.tokens,
        "first_layer": view.first_layer,
        "embedding": summary(view.embedding),
        "layers": [
            {
                "layer": one.layer.index,
                "attention_kind": one.layer.attention,
                "residual": summary(one.residual),
                "attention": summary(one.attention),
                "mlp": summary(one.mlp),
                "flipped_experts": None if one.flipped is None else int(one.flipped.sum()),
                "flipped_tokens": None if one.flipped is None else int((one.flipped > 0).sum()),
            }
            for one in view.layers
        ],
        "kl_nats": [_finite(value) for value in view.kl],
        "same_top_token": int(view.same_top.sum()),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _print(view: DiffView, asked: GivenPrompt, shown: list[int], a: str, b: str) -> None:
    table(
        ["layer", "kind", "stream", "attention adds", "MLP adds", ">flipped"],
        (_row(view.layers[index]) for index in shown),
        title=f"B, {b}, against A, {a}: relative error, mean of {len(view.tokens)} tokens",
    )
    say_left_out(range(len(view.layers)), shown)
    say("bars are logarithmic, from 1e-8 to 1; flipped: tokens that went to other experts")
    first = view.first_layer
    if first is None and not view.kl.any():
        say("no difference: the same numbers in every layer and at the head")
        return
    where = {None: "only at the head", -1: "in the embedding"}.get(first, f"in layer {first}")
    worst = int(view.kl.argmax())
    say(f"they part {where}; at the head KL(A || B) is {number(float(view.kl.mean()))} nats on "
        f"average,\nat most {number(float(view.kl[worst]))} after token {worst} "
        f"{named(asked, int(view.tokens[worst]))}; same likeliest token after "
        f"{int(view.same_top.sum())} of {len(view.tokens)}")  # fmt: skip


def _row(one: LayerDiff) -> list[Any]:
    flips = "-" if one.flipped is None else str(int((one.flipped > 0).sum()))
    cells = [_error(errors) for errors in (one.residual, one.attention, one.mlp)]
    return [str(one.layer.index), kind(one.layer), *cells, flips]


def _error(errors: Array) -> Any:
    mean = float(errors.mean())
    share = 1 - math.log(mean) / math.log(LEAST) if mean > 0 and math.isfinite(mean) else 0.0
    return bar_and(share if math.isfinite(mean) else 1.0, 6, number(mean, 2), 8)
