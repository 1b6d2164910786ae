"""``laguna-ref synth``: writes a checkpoint of made-up weights, of any config and size."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from laguna_ref.cli.options import IGNORE_OPTION, JSON_OPTION
from laguna_ref.cli.output import human, note, print_json, progress
from laguna_ref.cli.prompts import parse_token_ids
from laguna_ref.errors import ConfigError, InputError


@click.command("synth")
@click.option(
    "--preset", "preset_name", metavar="NAME",
    help="A published config: xs2, xs2-int4, xs21-int4.  [default: xs2-int4]",
)  # fmt: skip
@click.option("--config", "config_file", metavar="FILE", help="Any other config.json.")
@click.option("--layers", type=click.IntRange(min=1), help="Only the first so many layers.")
@click.option("--layer-ids", metavar="IDS", help="Only these layers, renumbered: 0,1,2,31.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to write."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a folder that has files in it.")
@IGNORE_OPTION
@JSON_OPTION
def command(
    preset_name: str | None,
    config_file: str | None,
    layers: int | None,
    layer_ids: str | None,
    out: Path,
    seed: int,
    overwrite: bool,
    ignore_config_key: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write a checkpoint with random weights in the published layout.

    Activations stay in a trained model's range and every expert is chosen about equally often.
    Tensors are made one at a time: the 24 GB of a whole XS.2 need no memory to speak of.
    """
    from laguna_ref import checkpoint
    from laguna_ref.config import LagunaConfig

    if preset_name is not None and config_file is not None:
        raise InputError("give --preset or --config, not both")
    if layers is not None and layer_ids is not None:
        raise InputError("give --layers or --layer-ids, not both")
    ids = None if layer_ids is None else parse_token_ids(layer_ids)
    if config_file is None:
        raw = checkpoint.preset(preset_name or "xs2-int4", layers, ids)
    else:
        raw = _sliced(Path(config_file), layers, ids)
    source = config_file or f"preset {preset_name or 'xs2-int4'}"
    config = LagunaConfig.from_dict(raw, source=source, ignore_keys=ignore_config_key)
    tensors = checkpoint.synth(config, seed=seed)
    started = time.perf_counter()
    with progress(f"writing {out}", unit="B") as bar:
        checkpoint.write(
            out,
            config,
            tensors,
            overwrite=overwrite,
            extra_files={"generation_config.json": _generation_config(config)},
            progress=bar,
        )
    seconds = time.perf_counter() - started
    files = sorted(path for path in out.iterdir() if path.suffix == ".safetensors")
    nbytes = sum(path.stat().st_size for path in files)
    if as_json:
        print_json(
            {
                "path": str(out),
                "config": source,
                "layers": config.num_hidden_layers,
                "seed": seed,
                "files": [path.name for path in files],
                "bytes": nbytes,
                "seconds": seconds,
            }
        )
        return
    shards = "1 file" if len(files) == 1 else f"{len(files)} files"
    note(
        f"{out}: {config.num_hidden_layers} layers of {source}, seed {seed}, {human(nbytes, 'B')} "
        f"in {shards}, {human(nbytes / seconds, 'B')}/s"
    )


def _sliced(file: Path, layers: int | None, ids: list[int] | None) -> dict[str, Any]:
    """A config.json, or the layers of it that were asked for."""
    from laguna_ref.checkpoint.presets import slice_layers
    from laguna_ref.config import LagunaConfig
    from laguna_ref.json_file import read_json

    raw = read_json(file / "config.json" if file.is_dir() else file, ConfigError)
    if layers is None and ids is None:
        return raw
    count = LagunaConfig.from_dict(raw, source=str(file), ignore_keys=tuple(raw)).num_hidden_layers
    kept = list(range(layers)) if layers is not None else list(ids or [])
    if not all(layer < count for layer in kept):
        raise InputError("no such layers", file=file, expected=f"0 to {count - 1}", found=kept)
    return slice_layers(raw, kept)


def _generation_config(config: Any) -> bytes:
    """Greedy, with the config's own stop ids: made-up weights say nothing worth sampling."""
    content = {
        "bos_token_id": config.bos_token_id,
        "do_sample": False,
        "eos_token_id": list(config.eos_token_id),
        "pad_token_id": config.pad_token_id,
    }
    return (json.dumps(content, indent=2) + "\n").encode()
