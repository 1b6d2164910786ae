"""``laguna-ref logits``: what the model expects next, as a table or as an array."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.forward import file_metadata, logits_in_chunks, require_suffix, write_arrays
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import note, print_json, print_table
from laguna_ref.cli.prompts import GivenPrompt, prompt_options, read_prompt
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.model import Laguna
    from laguna_ref.numerics import Array


@click.command("logits", cls=ModelCommand)
@prompt_options
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="K",
    help="Rows of the table: the K likeliest tokens.",
)  # fmt: skip
@click.option(
    "--position", type=int, help="After this token (from 0; negative: from the end). Default: last."
)
@click.option("--all", "every", is_flag=True, help="After every token; the default with --out.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write the logits [T, V] to FILE.npy or FILE.safetensors instead of a table.",
)  # fmt: skip
@model_options
def command(
    options: ModelOptions,
    prompt: str | None,
    prompt_file: str | None,
    token_ids: str | None,
    bos: bool,
    top: int,
    position: int | None,
    every: bool,
    out: Path | None,
) -> None:
    """Logits of the token after PROMPT; logprobs are in nats.

    A .safetensors file holds them as lm_head beside tokens and positions, under the names that
    traces have, with what produced them in its metadata.
    """
    require_suffix(out, ".npy", ".safetensors")
    if every and position is not None:
        raise InputError("give --position or --all, not both")
    model = options.load()
    asked = read_prompt(model, prompt, prompt_file, token_ids, bos)
    rows = _rows(len(asked.tokens), position, every or (out is not None and position is None))
    logits = _compute(model, asked.tokens, rows)
    if out is not None:
        _write(options, model, asked, rows, logits, out)
        return
    tables = [_top(asked, row, values, top) for row, values in zip(rows, logits, strict=True)]
    if options.as_json:
        print_json(
            {
                "prompt": asked.text,
                "prompt_tokens": asked.tokens,
                "positions": tables,
                "settings": options.settings(model) | {"bos": bos},
            }
        )
        return
    for table in tables:
        shown = [
            (entry["token"], asked.quoted(entry["token"]), f"{entry['logit']:.4f}",
             f"{entry['logprob']:.4f}")
            for entry in table["top"]
        ]  # fmt: skip
        last = f"{table['token']} {asked.quoted(table['token'])}"
        title = f"after token {table['position']}: {last}"
        print_table([">token", "~text", ">logit", ">logprob"], shown, title=title)


def _rows(count: int, position: int | None, every: bool) -> range:
    """The rows of the logits that were asked for."""
    if every or count == 0:
        return range(count)
    index = -1 if position is None else position
    if not -count <= index < count:
        raise InputError("no such position", expected=f"{-count} to {count - 1}", found=index)
    row = index % count
    return range(row, row + 1)


def _compute(model: Laguna, tokens: list[int], rows: range) -> Array:
    """Logits [rows, V]; those of other rows are dropped chunk by chunk, or never computed."""
    import numpy as np

    last_only = rows == range(len(tokens) - 1, len(tokens))
    kept = []
    for first, logits in logits_in_chunks(model, tokens, last_only=last_only):
        wanted = range(max(rows.start, first), min(rows.stop, first + len(logits)))
        if wanted:
            kept.append(logits[wanted.start - first : wanted.stop - first])
    return np.concatenate(kept)


def _top(asked: GivenPrompt, row: int, logits: Array, top: int) -> dict[str, Any]:
    """The likeliest tokens after ``row``, likeliest first, the lower id first among equals."""
    import numpy as np

    wide = logits.astype(np.float64)
    greatest = wide.max()
    log_total = greatest + np.log(np.exp(wide - greatest).sum())
    order = np.argsort(-wide, kind="stable")[:top]
    return {
        "position": row,
        "token": asked.tokens[row],
        "text": asked.text_of(asked.tokens[row]),
        "top": [
            {
                "token": int(token),
                "text": asked.text_of(int(token)),
                "logit": float(wide[token]),
                "logprob": float(wide[token] - log_total),
            }
            for token in order
        ],
    }


def _write(
    options: ModelOptions, model: Laguna, asked: GivenPrompt, rows: range, logits: Array, out: Path
) -> None:
    import numpy as np

    arrays = {"lm_head": logits}
    if out.suffix == ".safetensors":
        arrays["tokens"] = np.array(asked.tokens, dtype=np.int64)
        arrays["positions"] = np.arange(len(asked.tokens), dtype=np.int64)
    first_and_last = [rows.start, rows.stop - 1]
    metadata = file_metadata(options, model) | {"lm_head_rows": "{}-{}".format(*first_and_last)}
    write_arrays(out, arrays, metadata)
    if options.as_json:
        print_json(
            {
                "file": str(out),
                "shape": list(logits.shape),
                "dtype": str(logits.dtype),
                "rows": first_and_last,
                "prompt_tokens": asked.tokens,
                "settings": options.settings(model),
            }
        )
    else:
        note(f"{out}: logits {list(logits.shape)} {logits.dtype}, after tokens {rows.start} to "
             f"{rows.stop - 1}")  # fmt: skip
