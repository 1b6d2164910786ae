"""``laguna-ref trace``: values inside the forward pass, written to a file or summed up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.forward import file_metadata, logits_in_chunks, require_suffix, write_arrays
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import note, print_json, print_table
from laguna_ref.cli.prompts import prompt_options, read_prompt

if TYPE_CHECKING:
    from laguna_ref.config import LagunaConfig
    from laguna_ref.numerics import Array


@click.command("trace", cls=ModelCommand)
@prompt_options
@click.option(
    "--point", multiple=True, metavar="GLOB",
    help="Trace points to keep, for instance 'model.layers.*.mlp.gate'; repeatable. Default: the "
    "residual stream after each layer and the logits.",
)  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List all points with their shapes.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.safetensors",
    help="Write the values instead of a table of statistics.",
)  # fmt: skip
@model_options
def command(
    options: ModelOptions,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
    point: tuple[str, ...],
    listing: bool,
    out: Path | None,
) -> None:
    """Record trace points while PROMPT is computed.

    Points carry the names of the Transformers modules whose output they are. Without --out, a
    table shows mean, standard deviation, greatest absolute value, share of zeros and the first
    token in which the greatest value stands.
    """
    import numpy as np

    from laguna_ref.trace import Recorder, trace_points

    require_suffix(out, ".safetensors")
    model = options.load()
    if listing:
        _list_points(model.config, options.as_json, point)
        return
    asked = read_prompt(model, prompt, prompt_file, token_ids, bos)
    recorder = Recorder(*(point or _default_points(model.config)))
    recorder.require_known(model.config)
    for _ in logits_in_chunks(model, asked.tokens, trace=recorder):
        pass
    names = [name for name in trace_points(model.config) if name in recorder]
    if out is not None:
        arrays = {name: recorder[name] for name in names}
        arrays["tokens"] = np.array(asked.tokens, dtype=np.int64)
        arrays["positions"] = np.arange(len(asked.tokens), dtype=np.int64)
        write_arrays(out, arrays, file_metadata(options, model))
        note(f"{out}: {len(names)} points of {len(asked.tokens)} tokens")
        if options.as_json:
            print_json({"file": str(out), "points": names, "prompt_tokens": asked.tokens})
        return
    statistics = {name: _statistics(recorder[name]) for name in names}
    if options.as_json:
        settings = options.settings(model) | {"bos": bos}
        print_json({"prompt_tokens": asked.tokens, "points": statistics, "settings": settings})
        return
    print_table(
        ["point", "shape", ">mean", ">std", ">absmax", ">zeros", ">token of absmax"],
        (
            (name, s["shape"], f"{s['mean']:.4g}", f"{s['std']:.4g}", f"{s['absmax']:.4g}",
             f"{s['zeros']:.2%}", s["token_of_absmax"])
            for name, s in statistics.items()
        ),
    )  # fmt: skip


def _default_points(config: LagunaConfig) -> list[str]:
    return [
        "model.embed_tokens",
        *(f"model.layers.{layer.index}" for layer in config.layers),
        "model.norm",
        "lm_head",
    ]


def _statistics(value: Array) -> dict[str, Any]:
    """Of one point's value [T, ...], in float64."""
    import numpy as np

    wide = value.astype(np.float64)
    per_token = np.abs(wide).reshape(len(wide), -1).max(axis=1)
    return {
        "shape": list(value.shape),
        "dtype": str(value.dtype),
        "mean": float(wide.mean()),
        "std": float(wide.std()),
        "absmax": float(per_token.max()),
        "zeros": float((wide == 0).mean()),
        "token_of_absmax": int(per_token.argmax()),
    }


def _list_points(config: LagunaConfig, as_json: bool, patterns: tuple[str, ...]) -> None:
    """Every point (or those that the patterns name) in order of execution."""
    from laguna_ref.trace import Recorder, trace_points

    recorder = Recorder(*patterns)
    recorder.require_known(config)
    points = {
        name: (numbered_shape(config, name, axes), axes)
        for name, axes in trace_points(config).items()
        if recorder.wants(name)
    }
    if as_json:
        print_json(
            {"points": {name: {"shape": s, "axes": axes} for name, (s, axes) in points.items()}}
        )
        return
    print_table(["point", "shape", "~axes"], ((name, *both) for name, both in points.items()))


def numbered_shape(config: LagunaConfig, name: str, axes: str) -> str:
    """The shape with the model's numbers for its letters; T, the tokens, stays.

    ``axes`` is the text of ``trace_points``. Where it gives two shapes, the kind of gate
    decides.
    """
    shapes = re.findall(r"\[(.*?)\]", axes)
    number = {
        "D": config.hidden_size,
        "E": config.num_experts,
        "K": config.num_experts_per_tok,
        "V": config.vocab_size,
    }
    shape = shapes[0]
    in_layer = re.match(r"model\.layers\.(\d+)", name)
    if in_layer:
        layer = config.layers[int(in_layer[1])]
        number |= {"H": layer.num_heads, "G": layer.num_kv_heads, "C": layer.head_dim}
        shape = shapes[-1] if layer.gate == "per-element" else shapes[0]

    def size(axis: str) -> str:
        product = 1
        for letter in axis.split("*"):
            if letter not in number:
                return axis
            product *= number[letter]
        return str(product)

    return f"[{', '.join(size(axis) for axis in shape.split(', '))}]"
