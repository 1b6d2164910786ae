"""``laguna-ref explain attention``: where the heads look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.explain.drawing import (
    LAYERS_OPTION,
    PLOT_OPTION,
    kind,
    named,
    number,
    percent,
    require_plot,
    save_plot,
    say,
    say_left_out,
    shades,
    shown_layers,
    spark,
    table,
)
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import print_json
from laguna_ref.cli.prefill_bar import prefill_bar
from laguna_ref.cli.prompts import GivenPrompt, prompt_options, read_prompt
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.explain.attention_view import AttentionView, LayerAttention

MAP_IN_TERMINAL, MAP_IN_PLOT = 24, 64
"""Last tokens in the map of a layer."""


@click.command("attention", cls=ModelCommand)
@prompt_options
@click.option("--layer", type=int, metavar="N", help="Look at this layer: its heads, and a map.")
@click.option("--head", type=int, metavar="H", help="Map of this head.  [default: mean of all]")
@LAYERS_OPTION
@PLOT_OPTION
@model_options
def attention(
    options: ModelOptions,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
    layer: int | None,
    head: int | None,
    layers: str | None,
    plot: Path | None,
) -> None:
    """Where the heads look over PROMPT: how far back, at how many keys, through which gate.

    Probabilities are recomputed from queries and cached keys, as no engine hands them out.
    """
    require_plot(plot)
    if head is not None and layer is None:
        raise InputError("--head needs --layer")
    model = options.load()
    asked = read_prompt(model, prompt, prompt_file, token_ids, bos)
    shown = shown_layers(range(len(model.config.layers)), layers)
    from laguna_ref import explain

    with prefill_bar(model, len(asked.tokens)) as advance:
        view = explain.attention(
            model, asked.tokens, maps=[] if layer is None else [layer],
            last=MAP_IN_PLOT, on_prefill=advance,
        )  # fmt: skip
    _require_head(view, layer, head)
    if options.as_json:
        settings = options.settings(model) | {"bos": bos}
        print_json(describe(view, asked, layer) | {"settings": settings})
    elif layer is not None:
        _print_layer(view.layers[layer], view, asked, head)
    else:
        _print(view, shown)
    from laguna_ref.explain import plots

    save_plot(plot, lambda: plots.attention(view, asked.quoted, layer, head))


def describe(view: AttentionView, asked: GivenPrompt, layer: int | None) -> dict[str, Any]:
    """What ``--json`` prints; the map, if a layer was asked for, is [heads, queries, keys]."""
    result: dict[str, Any] = {
        "schema": 1,
        "prompt": asked.text,
        "prompt_tokens": asked.tokens,
        "layers": [
            {
                "layer": one.layer.index,
                "attention": one.layer.attention,
                "window": one.layer.window,
                "heads": [
                    {"distance": d, "entropy": e, "own": o, "first": f, "gate": g}
                    for d, e, o, f, g in zip(
                        *(x.tolist() for x in (one.distance, one.entropy, one.own, one.first,
                                               one.gate)),
                        strict=True,
                    )
                ],
            }
            for one in view.layers
        ],
    }  # fmt: skip
    if layer is not None:
        chosen = view.layers[layer].map
        assert chosen is not None
        first = len(view.tokens) - chosen.shape[1]
        result["map"] = {"layer": layer, "first": first, "probabilities": chosen.tolist()}
    return result


def _require_head(view: AttentionView, layer: int | None, head: int | None) -> None:
    if layer is not None and head is not None:
        count = view.layers[layer].layer.num_heads
        if not 0 <= head < count:
            raise InputError("no such head", expected=f"0 to {count - 1}", found=head)


def _print(view: AttentionView, shown: list[int]) -> None:
    import numpy as np

    table(
        ["layer", "kind", ">heads", ">back", ">keys", ">own", ">first", ">gate",
         "back, by head"],
        (
            (
                str(one.layer.index), kind(one.layer), str(one.layer.num_heads),
                number(one.distance.mean()), number(np.exp(one.entropy).mean()),
                percent(one.own.mean()), percent(one.first.mean()), number(one.gate.mean()),
                spark(one.distance, 16),
            )
            for one in (view.layers[index] for index in shown)
        ),
        title=f"Attention over {len(view.tokens)} tokens, mean over heads and queries",
    )  # fmt: skip
    say_left_out(range(len(view.layers)), shown)
    say(
        "back: tokens. keys: how many share the attention, exp of its mean entropy.\n"
        "own, first: probability of the query's own token, of the first. gate: on the\n"
        "output."
    )


def _print_layer(
    one: LayerAttention, view: AttentionView, asked: GivenPrompt, head: int | None
) -> None:
    import numpy as np

    heads = range(one.layer.num_heads)
    table(
        [">head", ">back", ">keys", ">own", ">first", ">gate"],
        (
            (str(h), number(one.distance[h]), number(float(np.exp(one.entropy[h]))),
             percent(one.own[h]), percent(one.first[h]), number(one.gate[h]))
            for h in heads
        ),
        title=f"Layer {one.layer.index}, {kind(one.layer)} attention",
    )  # fmt: skip
    assert one.map is not None
    kept = one.map.mean(axis=0) if head is None else one.map[head]
    kept = kept[-MAP_IN_TERMINAL:, -MAP_IN_TERMINAL:]
    first = len(view.tokens) - len(kept)
    table(
        [">token", "text", "looks at"],
        (
            (str(first + i), named(asked, int(view.tokens[first + i])),
             shades(kept[i, : i + 1].repeat(2), float(kept.max())))
            for i in range(len(kept))
        ),
        title=f"The last {len(kept)} tokens, "
        + ("mean of all heads" if head is None else f"head {head}")
        + f"; darkest is {percent(float(kept.max()))}",
    )  # fmt: skip
