"""``laguna-ref explain rope``: wavelengths, YaRN and the attention factor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.explain.drawing import (
    PLOT_OPTION,
    bar,
    number,
    require_plot,
    save_plot,
    say,
    table,
)
from laguna_ref.cli.options import IGNORE_OPTION, JSON_OPTION, ModelOptions
from laguna_ref.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from laguna_ref.explain.rope_view import KindOfRope, RopeView

SHOWN_PAIRS = 16


@click.command("rope")
@click.option("--all-pairs", is_flag=True, help="One row a rotated pair, however many.")
@PLOT_OPTION
@click.option(
    "--model", metavar="PATH",
    help="Checkpoint folder, config.json or a preset such as xs2-int4.  [default: laguna-tiny]",
)  # fmt: skip
@IGNORE_OPTION
@JSON_OPTION
def rope(
    all_pairs: bool,
    plot: Path | None,
    model: str | None,
    ignore_config_key: tuple[str, ...],
    as_json: bool,
) -> None:
    """Wavelengths of both kinds of attention, what YaRN changes, what the attention factor does.

    Reads a config alone; no weights are needed.
    """
    require_plot(plot)
    from laguna_ref import explain
    from laguna_ref.explain import plots

    options = ModelOptions(model=model, ignore_config_key=ignore_config_key)
    config, source = options.read_config()
    view = explain.rope(config)
    if as_json:
        print_json({"schema": 1, "source": source} | describe(view))
    else:
        for one in view.kinds:
            _print(one, view, all_pairs)
    save_plot(plot, lambda: plots.rope(view))


def describe(view: RopeView) -> dict[str, Any]:
    """What ``--json`` prints; lists are one value a rotated pair."""
    return {
        "max_position_embeddings": view.max_position_embeddings,
        "kinds": [
            {
                "attention": one.attention,
                "layers": list(one.layers),
                "rope_type": one.spec.rope_type,
                "rope_theta": one.spec.rope_theta,
                "head_dim": one.head_dim,
                "rotary_dim": one.spec.rotary_dim,
                "factor": one.spec.factor,
                "original_max_position_embeddings": one.spec.original_max_position_embeddings,
                "attention_factor": one.spec.attention_factor,
                "attention_factor_from": one.spec.attention_factor_from,
                "derived_attention_factor": one.derived_factor,
                "score_factor": one.score_factor,
                "inv_freq": one.spec.inv_freq.tolist(),
                "wavelength": one.wavelength.tolist(),
                "plain_wavelength": one.plain.tolist(),
                "stretch": one.stretch.tolist(),
                "turns": one.turns.tolist(),
                "turns_over": one.turns_over,
                "ramp": one.ramp.tolist(),
            }
            for one in view.kinds
        ],
    }


def _print(one: KindOfRope, view: RopeView, all_pairs: bool) -> None:
    half = one.spec.rotary_dim // 2
    pairs = list(range(half)) if all_pairs or half <= SHOWN_PAIRS else list(_some(one))
    longest = math.log(max(float(other.wavelength.max()) for other in view.kinds))
    name = one.attention.replace("_", " ")
    table(
        [">pair", ">dims", ">wavelength", "(log)", ">plain", ">stretch", ">turns", "YaRN"],
        (
            (str(j), f"{j}, {j + half}", f"{one.wavelength[j]:,.1f}",
             bar(math.log(float(one.wavelength[j])) / longest, 8),
             f"{one.plain[j]:,.1f}", number(float(one.stretch[j])),
             number(float(one.turns[j])), _what(one, j))
            for j in pairs
        ),
        title=f"{name[0].upper()}{name[1:]}, {len(one.layers)} layers: {one.spec.rope_type}, theta "
        f"{one.spec.rope_theta:,.0f}, {one.spec.rotary_dim} of {one.head_dim} dims",
    )  # fmt: skip
    if len(pairs) < half:
        say(f"{half - len(pairs)} pairs are not shown; --all-pairs shows them")
    say(f"wavelength in tokens; plain and turns, over {one.turns_over:,} tokens, without YaRN")
    for line in _factor(one):
        say(line)
    say("")


def _some(one: KindOfRope) -> Iterator[int]:
    """Pairs spread evenly, with the ends of the ramp among them."""
    half = len(one.wavelength)
    even = {round(i * (half - 1) / (SHOWN_PAIRS - 3)) for i in range(SHOWN_PAIRS - 2)}
    inside = [j for j in range(half) if 0 < one.ramp[j] < 1]
    yield from sorted(even | set(inside[:1]) | set(inside[-1:]))


def _what(one: KindOfRope, pair: int) -> str:
    if one.spec.rope_type != "yarn":
        return "-"
    ramp = float(one.ramp[pair])
    if ramp in (0.0, 1.0):
        return f"frequency / {one.spec.factor:g}" if ramp else "kept"
    return f"ramp {ramp:.0%}"


def _factor(one: KindOfRope) -> Iterator[str]:
    """What the attention factor does, in words."""
    derived = one.derived_factor
    if derived is None:
        return
    yield (f"attention factor {one.spec.attention_factor:.4f} ({one.spec.attention_factor_from}): "
           f"scores of rotated dims times {one.score_factor:.4f}")  # fmt: skip
    if derived != one.spec.attention_factor:
        yield (f"a port that derives it, 0.1 ln({one.spec.factor:g}) + 1 = {derived:.4f}, "
               f"multiplies them by {derived**2:.4f}")  # fmt: skip
    if one.spec.rotary_dim < one.head_dim:
        yield (f"the other {one.head_dim - one.spec.rotary_dim} dims pass through: not rotated, "
               "not scaled")  # fmt: skip
