"""``laguna-ref explain routing``: where a prompt's tokens go."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.explain.drawing import (
    LAYERS_OPTION,
    PLOT_OPTION,
    named,
    number,
    percent,
    require_plot,
    save_plot,
    say,
    say_left_out,
    shown_layers,
    spark,
    table,
)
from laguna_ref.cli.explain.token import describe_choice
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import print_json
from laguna_ref.cli.prefill_bar import prefill_bar
from laguna_ref.cli.prompts import GivenPrompt, prompt_options, read_prompt
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.explain.routing_view import LayerRouting, RoutingView


@click.command("routing", cls=ModelCommand)
@prompt_options
@click.option(
    "--nearest", type=click.IntRange(0, 1000), default=8, show_default=True, metavar="N",
    help="Choices with the least margins to list.",
)  # fmt: skip
@LAYERS_OPTION
@PLOT_OPTION
@model_options
def routing(
    options: ModelOptions,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
    nearest: int,
    layers: str | None,
    plot: Path | None,
) -> None:
    """Load of the experts over PROMPT, margins of the choices, near ties.

    A near tie is a choice that rounding the two logits to bfloat16 could turn.
    """
    require_plot(plot)
    model = options.load()
    asked = read_prompt(model, prompt, prompt_file, token_ids, bos)
    sparse = [layer.index for layer in model.config.layers if layer.mlp == "sparse"]
    if not sparse:
        raise InputError("the model has no routed experts", found=str(model.checkpoint.path))
    shown = shown_layers(sparse, layers)
    from laguna_ref import explain

    with prefill_bar(model, len(asked.tokens)) as advance:
        view = explain.routing(model, asked.tokens, nearest=nearest, on_prefill=advance)
    if options.as_json:
        print_json(describe(view, asked) | {"settings": options.settings(model) | {"bos": bos}})
    else:
        _print(view, asked, shown)
    from laguna_ref.explain import plots

    save_plot(plot, lambda: plots.routing(view))


def describe(view: RoutingView, asked: GivenPrompt) -> dict[str, Any]:
    """What ``--json`` prints; margins are null where all experts are chosen."""
    import numpy as np

    def margin(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "schema": 1,
        "prompt": asked.text,
        "prompt_tokens": asked.tokens,
        "experts": view.experts,
        "experts_per_token": view.top_k,
        "layers": [
            {
                "layer": one.layer,
                "load": one.load.tolist(),
                "weight": one.weight.tolist(),
                "effective_experts": one.effective_experts,
                "least_margin": margin(float(one.margins.min())),
                "median_margin": margin(float(np.median(one.margins))),
                "near_ties": int(one.near_ties.sum()),
            }
            for one in view.layers
        ],
        "nearest": [
            {"layer": choice.layer, "position": choice.position,
             "token": asked.tokens[choice.position],
             "text": asked.text_of(asked.tokens[choice.position])} | describe_choice(choice)
            for choice in view.nearest
        ],
    }  # fmt: skip


def _print(view: RoutingView, asked: GivenPrompt, shown: list[int]) -> None:
    layers = [one for one in view.layers if one.layer in set(shown)]
    table(
        ["layer", "load, by expert", ">used", ">as if", "busiest", ">margin", ">least", ">near"],
        (_row(one, view) for one in layers),
        title=f"Load and margins of {len(view.tokens)} tokens, each to {view.top_k} of "
        f"{view.experts} experts",
    )  # fmt: skip
    if view.nearest:
        table(
            [">layer", ">position", "token", ">chosen", ">next", ">margin", ""],
            (
                (str(c.layer), str(c.position), named(asked, asked.tokens[c.position]),
                 str(c.experts[-1]), "-" if c.runner_up is None else str(c.runner_up),
                 number(c.margin), "near tie" if c.near_tie else "")
                for c in view.nearest
            ),
            title="Least margins: the last expert chosen, and the next",
        )  # fmt: skip
    say_left_out([one.layer for one in view.layers], shown)
    say("as if: evenly loaded experts of the same entropy. margin: the median. near:\n"
        "ties so near that rounding both logits to bfloat16 could turn the choice.")  # fmt: skip


def _row(one: LayerRouting, view: RoutingView) -> list[str]:
    import numpy as np

    busiest = np.argsort(-one.load, kind="stable")[:2]
    total = one.load.sum()
    return [
        str(one.layer), spark(one.load, 16), str(int((one.load > 0).sum())),
        f"{one.effective_experts:.1f}",
        "  ".join(f"{i} {percent(one.load[i] / total)}" for i in busiest),
        number(float(np.median(one.margins))), number(float(one.margins.min())),
        str(int(one.near_ties.sum())),
    ]  # fmt: skip
