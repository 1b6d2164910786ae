"""``laguna-ref explain token``: one token's way from embedding to logits."""

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
    percent,
    require_plot,
    save_plot,
    say,
    say_left_out,
    shown_layers,
    spark,
    table,
)
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import print_json
from laguna_ref.cli.prefill_bar import prefill_bar
from laguna_ref.cli.prompts import GivenPrompt, prompt_options, read_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from laguna_ref.explain.lens import Guess
    from laguna_ref.explain.routing_view import Choice
    from laguna_ref.explain.token_view import LayerStep, TokenView


@click.command("token", cls=ModelCommand)
@prompt_options
@click.option(
    "--position", type=int, default=-1, show_default=True,
    help="The token to follow, from 0; negative: from the end.",
)  # fmt: skip
@click.option(
    "--top", type=click.IntRange(1, 100), default=5, show_default=True, metavar="K",
    help="Guesses kept for each layer (--json) and printed for the last.",
)  # fmt: skip
@LAYERS_OPTION
@PLOT_OPTION
@model_options
def token(
    options: ModelOptions,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
    position: int,
    top: int,
    layers: str | None,
    plot: Path | None,
) -> None:
    """One token of PROMPT, from embedding to logits.

    What each layer adds to its residual stream, where it looked, the gate of each head, the
    experts chosen, and what the model would say if it stopped there.
    """
    require_plot(plot)
    model = options.load()
    asked = read_prompt(model, prompt, prompt_file, token_ids, bos)
    shown = shown_layers(range(len(model.config.layers)), layers)
    from laguna_ref import explain

    with prefill_bar(model, len(asked.tokens)) as advance:
        view = explain.token(model, asked.tokens, position, top=top, on_prefill=advance)
    if options.as_json:
        print_json(describe(view, asked) | {"settings": options.settings(model) | {"bos": bos}})
    else:
        _print(view, asked, shown)
    from laguna_ref.explain import plots

    save_plot(plot, lambda: plots.token(view, asked.quoted))


def describe(view: TokenView, asked: GivenPrompt) -> dict[str, Any]:
    """What ``--json`` prints; keys stay, more may be added (docs/explain.md)."""
    from laguna_ref.explain.token_view import norm

    token = int(view.tokens[-1])
    return {
        "schema": 1,
        "prompt": asked.text,
        "prompt_tokens": asked.tokens,
        "position": view.position,
        "token": token,
        "text": asked.text_of(token),
        "embedding_norm": norm(view.embedding),
        "embedding_lens": _guesses(view.embedding_lens, asked),
        "embedding_logprob_of_answer": view.embedding_answer_logprob,
        "layers": [_describe_layer(step, view, asked) for step in view.layers],
        "next": _guesses(view.guesses, asked),
    }


def _describe_layer(step: LayerStep, view: TokenView, asked: GivenPrompt) -> dict[str, Any]:
    looked_at = [
        {"position": at, "token": int(view.tokens[at]), "text": asked.text_of(int(view.tokens[at])),
         "probability": probability}
        for at, probability in step.most_looked_at(5)
    ]  # fmt: skip
    return {
        "layer": step.layer.index,
        "attention": step.layer.attention,
        "window": step.layer.window,
        "norm_before": step.before,
        "norms": step.norms,
        "norm_after": step.after,
        "norm_of_rounding": step.rounding,
        "looked_at": looked_at,
        "heads": [
            {"looked_at": int(at), "probability": float(probability), "gate": float(gate)}
            for at, probability, gate in zip(step.head_looked_at, step.head_probability,
                                             step.gate, strict=True)
        ],
        "routing": None if step.choice is None else describe_choice(step.choice),
        "lens": _guesses(step.lens, asked),
        "logprob_of_answer": step.answer_logprob,
    }  # fmt: skip


def describe_choice(choice: Choice) -> dict[str, Any]:
    """A router's choice for ``--json``; an infinite margin is null."""
    return {
        "experts": list(choice.experts),
        "weights": list(choice.weights),
        "logits": list(choice.logits),
        "scores": list(choice.scores),
        "runner_up": choice.runner_up,
        "margin": choice.margin if math.isfinite(choice.margin) else None,
        "near_tie": choice.near_tie,
    }


def _guesses(guesses: Sequence[Guess], asked: GivenPrompt) -> list[dict[str, Any]]:
    return [
        {"token": guess.token, "text": asked.text_of(guess.token), "logit": guess.logit,
         "logprob": guess.logprob}
        for guess in guesses
    ]  # fmt: skip


def _print(view: TokenView, asked: GivenPrompt, shown: Sequence[int]) -> None:
    steps = [view.layers[index] for index in shown]
    name = named(asked, int(view.tokens[-1]), 20)
    title = f"Token {view.position}, {name}: norm of its stream, and of what is added"
    table(
        ["layer", "kind", ">stream", "attention", "shared", "routed, MLP", "if ended here"],
        (_way(step, asked) for step in steps),
        title=title,
    )
    table(
        ["layer", "kind", "looked at most", "and then", "gates"],
        (_looked(step, view, asked) for step in steps),
        title="Positions it looked at, mean over the heads; the gates of the heads",
    )
    sparse = [step.choice for step in steps if step.choice is not None]
    if sparse:
        columns = ["layer", "experts and weights", ">margin", "runner-up"]
        table(columns, (chosen_row(c) for c in sparse), title="Experts chosen")
    table(
        [">token", "text", ">logit", "probability"],
        (
            (str(g.token), named(asked, g.token, 24), f"{g.logit:.3f}",
             bar_and(math.exp(g.logprob), 20, percent(math.exp(g.logprob)), 4))
            for g in view.guesses
        ),
        title="Next token",
    )  # fmt: skip
    say_left_out(range(len(view.layers)), shown)
    say("A bar is the share of the norm of the stream after the layer.")


def _way(step: LayerStep, asked: GivenPrompt) -> list[Any]:
    def part(*names: str) -> Any:
        found = [step.norms[name] for name in names if name in step.norms]
        if not found:
            return "-"
        share = found[0] / step.after if step.after else 0.0
        return bar_and(share, 4, number(found[0]), 6)

    guess = step.lens[0]
    says = f"{percent(math.exp(guess.logprob)):>4} {named(asked, guess.token, 10)}"
    return [
        str(step.layer.index), kind(step.layer), number(step.before), part("attention"),
        part("shared_experts"), part("routed_experts", "dense_mlp"), says,
    ]  # fmt: skip


def _looked(step: LayerStep, view: TokenView, asked: GivenPrompt) -> list[Any]:
    looks = [
        f"{at} {named(asked, int(view.tokens[at]), 9)} {percent(probability)}"
        for at, probability in step.most_looked_at(2)
    ]
    looks += [""] * (2 - len(looks))
    low, high = number(float(step.gate.min()), 2), number(float(step.gate.max()), 2)
    gates = f"{spark(step.gate, 8)} {low}-{high}"
    return [str(step.layer.index), kind(step.layer), *looks, gates]


def chosen_row(choice: Choice) -> list[str]:
    """Layer, experts, margin and runner-up of a choice."""
    pairs = [f"{e} {w:.2f}" for e, w in zip(choice.experts, choice.weights, strict=True)]
    experts = "  ".join(pairs[:4]) + (f"  +{len(pairs) - 4}" if len(pairs) > 4 else "")
    runner_up = "-" if choice.runner_up is None else str(choice.runner_up)
    near = "  near tie" if choice.near_tie else ""
    return [str(choice.layer), experts, number(choice.margin), runner_up + near]
