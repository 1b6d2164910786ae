"""``laguna-ref explain weight``: one row of a tensor, from 32-bit words down to values."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.explain.drawing import (
    PLOT_OPTION,
    bar,
    number,
    percent,
    require_plot,
    save_plot,
    say,
    table,
)
from laguna_ref.cli.options import IGNORE_OPTION, JSON_OPTION
from laguna_ref.cli.output import print_json
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.explain.weight_view import Packed, WeightView

SHOWN_GROUPS, BINS = 16, 16


@click.command("weight")
@click.argument("tensor", metavar="TENSOR")
@click.option("--row", type=int, default=0, show_default=True, help="Which row, from 0.")
@click.option(
    "--columns", metavar="A-B",
    help="Columns, the last one included; of a packed tensor whole words are shown.  "
    "[default: the first 32]",
)  # fmt: skip
@PLOT_OPTION
@click.option("--model", metavar="PATH", help="Checkpoint folder.  [default: laguna-tiny]")
@IGNORE_OPTION
@JSON_OPTION
def weight(
    tensor: str,
    row: int,
    columns: str | None,
    plot: Path | None,
    model: str | None,
    ignore_config_key: tuple[str, ...],
    as_json: bool,
) -> None:
    """TENSOR's words, codes, scales and values, and what its rounding can have cost.

    TENSOR is a tensor of the checkpoint or a module that has a weight, for instance
    model.layers.1.mlp.experts.0.gate_proj.
    """
    require_plot(plot)
    wanted = _columns(columns)
    from laguna_ref import checkpoint, explain
    from laguna_ref.explain import plots
    from laguna_ref.load import resolve

    opened = checkpoint.open(resolve(model), ignore_keys=ignore_config_key)
    view = explain.weight(opened, tensor, row, wanted)
    if as_json:
        print_json(describe(view))
    elif view.packed is not None:
        _print_packed(view, view.packed)
    else:
        _print_dense(view)
    save_plot(plot, lambda: plots.weight(view))


def describe(view: WeightView) -> dict[str, Any]:
    """What ``--json`` prints; ``packed`` is null for a dense tensor."""
    return {
        "schema": 1,
        "name": view.name,
        "shape": list(view.shape),
        "stored_type": view.stored_type,
        "format": str(view.format),
        "row": view.row,
        "columns": [view.columns.start, view.columns.stop - 1],
        "patterns": view.patterns.tolist(),
        "values": view.values.tolist(),
        "bf16_values": view.bf16_values.tolist(),
        "packed": None if view.packed is None else _describe_packed(view.packed),
    }


def _describe_packed(packed: Packed) -> dict[str, Any]:
    return {
        "bits": packed.bits,
        "group_size": packed.group_size,
        "first_word": packed.first_word,
        "words": packed.words.tolist(),
        "codes": packed.codes.tolist(),
        "groups": [
            {
                "columns": [group.columns.start, group.columns.stop - 1],
                "scale": group.scale,
                "half_step": group.half_step,
                "expected_error": group.expected_error,
                "relative_error": group.relative_error
                if math.isfinite(group.relative_error)
                else None,
                "greatest": group.greatest,
                "rms": group.rms,
                "at_the_ends": group.at_the_ends,
            }
            for group in packed.groups
        ],
        "counts": packed.counts.tolist(),
        "rows_counted": packed.rows_counted,
        "changed_by_bf16": packed.changed_by_bf16,
    }


def _columns(text: str | None) -> range | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if match is None:
        raise InputError("not columns", key="--columns", expected="A-B, such as 0-31", found=text)
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _head(view: WeightView) -> str:
    shape = " x ".join(str(axis) for axis in view.shape) or "scalar"
    return (
        f"{view.name}: {shape}, {view.format if view.packed else view.stored_type}, row {view.row}"
    )


def _print_packed(view: WeightView, packed: Packed) -> None:
    per_word, half = packed.columns_per_word, 1 << (packed.bits - 1)
    say(_head(view))
    say(f"a word holds {per_word} codes, lowest bits first; (stored code - {half}) x scale is the "
        "value\n")  # fmt: skip
    name = "nibble" if packed.bits == 4 else "byte"
    for i, word in enumerate(packed.words.tolist()):
        at = slice(i * per_word, (i + 1) * per_word)
        first = view.columns.start + i * per_word
        group = packed.groups[first // packed.group_size]
        lines = {
            f"{name}": [f"{x:x}".rjust(packed.bits // 4, "0") for x in view.patterns[at].tolist()],
            "code": [str(x) for x in packed.codes[at].tolist()],
            "value": [number(x) for x in view.values[at].tolist()],
        }
        last = first + len(lines["code"]) - 1
        say(f"word {packed.first_word + i}  0x{word:08x}  columns {first}-{last}, scale "
            f"{number(group.scale, 4)}")  # fmt: skip
        for label, cells in lines.items():
            say(f"  {label:>6}" + "".join(f"{cell:>9}" for cell in cells))
    say("")
    _print_groups(packed)
    _print_counts(packed)


def _print_groups(packed: Packed) -> None:
    table(
        [">columns", ">scale", ">half step", ">expected error", ">RMS", ">error / RMS", ">at ends"],
        (
            (f"{g.columns.start}-{g.columns.stop - 1}", number(g.scale, 4), number(g.half_step),
             number(g.expected_error), number(g.rms), percent(g.relative_error)
             if math.isfinite(g.relative_error) else "-", str(g.at_the_ends))
            for g in packed.groups[:SHOWN_GROUPS]
        ),
        title="Groups of the row, and what rounding to them can have cost",
    )  # fmt: skip
    if len(packed.groups) > SHOWN_GROUPS:
        say(f"{len(packed.groups) - SHOWN_GROUPS} more groups with --json")
    say(
        "half step: the most that rounding to the nearest is off by; dividing in\n"
        "bfloat16 before it makes it up to 0.75 step for INT8. expected error: scale\n"
        "/ sqrt(12), if errors are spread evenly. The weights before rounding are\n"
        "not stored."
    )
    say(f"rounded to bfloat16, as released loaders do, {percent(packed.changed_by_bf16)} of the "
        "row's values change")  # fmt: skip


def _print_counts(packed: Packed) -> None:
    """How often each code occurs; INT8 in sixteen bins."""
    width = len(packed.counts) // BINS
    half = 1 << (packed.bits - 1)
    bins = packed.counts.reshape(BINS, width).sum(axis=1)
    table(
        [">code", ">share", ""],
        (
            (str(i * width - half) if width == 1 else f"{i * width - half} to "
             f"{(i + 1) * width - 1 - half}", percent(count / bins.sum()),
             bar(count / bins.max(), 40))
            for i, count in enumerate(bins.tolist())
        ),
        title=f"Codes of {packed.rows_counted} rows",
    )  # fmt: skip


def _print_dense(view: WeightView) -> None:
    bits = view.patterns.dtype.itemsize * 8
    exponent = {"BF16": 8, "F32": 8, "F16": 5}.get(view.stored_type, 11)

    def parts(pattern: int) -> str:
        text = f"{pattern:0{bits}b}"
        return f"{text[0]} {text[1 : 1 + exponent]} {text[1 + exponent :]}"

    table(
        [">column", ">hex", "sign, exponent, fraction", ">value"],
        (
            (str(column), f"{pattern:0{bits // 4}x}", parts(pattern), number(value, 6))
            for column, pattern, value in zip(view.columns, view.patterns.tolist(),
                                              view.values.tolist(), strict=True)
        ),
        title=_head(view),
    )  # fmt: skip
