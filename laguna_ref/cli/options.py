"""Options that every command which reads a model takes, and what they come to."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from laguna_ref.config import LagunaConfig
    from laguna_ref.model import Laguna

SKIP_LAYERS = "--kv-cache-dtype-skip-layers"
_LAYERS = re.compile(r"(\d+(-\d+)?|sliding_window)(,(\d+(-\d+)?|sliding_window))*")


@dataclass(frozen=True)
class ModelOptions:
    """The shared options; None leaves the choice to ``laguna_ref.load``."""

    model: str | None = None
    numerics: str = "float32"
    engine: str | None = None
    dequant: str | None = None
    kv_cache: str = "checkpoint"
    kv_cache_skip_layers: tuple[str, ...] = ()
    threads: int | None = None
    ignore_config_key: tuple[str, ...] = ()
    as_json: bool = False

    def load(self) -> Laguna:
        """The model that the options describe; raises LagunaError."""
        from laguna_ref.load import load

        chosen = {} if self.engine is None else {"engine": self.engine}
        return load(
            self.model,
            numerics=self.numerics,
            dequant=self.dequant,
            kv_cache=self.kv_cache,
            kv_cache_skip_layers=self.kv_cache_skip_layers,
            threads=self.threads,
            ignore_config_keys=self.ignore_config_key,
            **chosen,
        )

    def read_config(self, file: str | Path | None = None) -> tuple[LagunaConfig, str]:
        """The config alone, and where it came from; no weights needed.

        ``file``, or else what --model names: a folder, a config.json or a preset. Raises
        ConfigError.
        """
        from laguna_ref.checkpoint import PRESETS, preset
        from laguna_ref.config import LagunaConfig
        from laguna_ref.load import resolve

        source = file or self.model
        if file is None and self.model in PRESETS and not Path(self.model).exists():
            config = LagunaConfig.from_dict(
                preset(self.model), source=self.model, ignore_keys=self.ignore_config_key
            )
            return config, f"preset {self.model}"
        path = resolve(source)
        return LagunaConfig.from_file(path, ignore_keys=self.ignore_config_key), str(path)

    def fp8_layers(self, config: LagunaConfig) -> tuple[bool, ...]:
        """Whether each layer's cache is FP8; raises InputError for layers there are not."""
        from laguna_ref.load import fp8_cache_layers

        return fp8_cache_layers(config, self.kv_cache, self.kv_cache_skip_layers)

    def settings(self, model: Laguna) -> dict[str, Any]:
        """What was in effect, defaults resolved, for ``--json`` and for metadata of files."""
        return {
            "model": str(model.checkpoint.path),
            "numerics": model.numerics.name,
            "dequant": model.numerics.dequant,
            "engine": getattr(model.engine, "__name__", "").rpartition(".")[2].split("_")[0],
            "kv_cache": self.kv_cache,
            "kv_cache_fp8_layers": [i for i, kv in enumerate(model.kv_formats) if kv.fp8],
            "threads": self.threads,
            "ignored_config_keys": dict(model.config.ignored),
            "notes": list(model.checkpoint.notes),
        }


JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, errors included, on stdout."
)
IGNORE_OPTION = click.option(
    "--ignore-config-key",
    multiple=True,
    metavar="KEY",
    help="Unknown key of config.json to pass over; may be repeated.",
)
_OPTIONS = {
    "model": click.option(
        "--model",
        metavar="PATH",
        help="Checkpoint folder, or a model in the local Hub cache. "
        "Default: laguna-tiny, which comes with the package.",
    ),
    "numerics": click.option(
        "--numerics",
        type=click.Choice(["float32", "float64", "bfloat16"]),
        default="float32",
        show_default=True,
        help="What the numbers are; bfloat16 rounds where the released implementation does.",
    ),
    "engine": click.option(
        "--engine",
        type=click.Choice(["numba", "numpy"]),
        default="numba",
        show_default=True,
        help="Compiled kernels, or the plain NumPy operations.",
    ),
    "dequant": click.option(
        "--dequant",
        type=click.Choice(["exact", "bf16"]),
        help="Integer times scale, exact or rounded to bfloat16. "
        "Default: bf16 with --numerics bfloat16, else exact.",
    ),
    "kv_cache": click.option(
        "--kv-cache",
        type=click.Choice(["checkpoint", "float", "fp8"]),
        default="checkpoint",
        show_default=True,
        help="Type of cached keys and values; checkpoint: FP8 where it is declared.",
    ),
    "kv_cache_skip_layers": click.option(
        SKIP_LAYERS,
        "kv_cache_skip_layers",
        multiple=True,
        metavar="LAYERS...",
        help="Layers whose cache stays float: 3, 0-39, sliding_window; several after one flag "
        "(end them with -- before a prompt that looks like one), or repeated.",
    ),
    "threads": click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="Most threads that matrix products may use.",
    ),
    "ignore_config_key": IGNORE_OPTION,
    "as_json": JSON_OPTION,
}
"""By the field of ModelOptions that each fills."""


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the shared options; the command gets them as its first argument, a ModelOptions."""
    return model_options_but()(function)


def model_options_but(*left_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same without the options of these names, whose fields keep their defaults."""
    options = {name: option for name, option in _OPTIONS.items() if name not in left_out}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(**values: Any) -> Any:
            chosen = ModelOptions(**{name: values.pop(name) for name in options})
            return function(chosen, **values)

        command: Callable[..., Any] = wrapper
        for option in reversed(options.values()):
            command = option(command)
        return command

    return decorate


class ModelCommand(click.Command):
    """A command whose ``--kv-cache-dtype-skip-layers`` takes several values after one flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeats the flag before each of its values, then parses as usual."""
        return super().parse_args(ctx, repeat_flag(args))


def repeat_flag(args: Sequence[str]) -> list[str]:
    """``FLAG 0 1 2-4`` as ``FLAG 0 FLAG 1 FLAG 2-4``, as far as values look like layers.

    >>> repeat_flag(["--kv-cache-dtype-skip-layers", "0", "2-4", "a prompt"])[2:]
    ['--kv-cache-dtype-skip-layers', '2-4', 'a prompt']
    """
    result: list[str] = []
    follows_flag = False
    for index, argument in enumerate(args):
        if argument == "--":
            return result + list(args[index:])
        if argument == SKIP_LAYERS:
            follows_flag = True
        elif follows_flag and result[-1] != SKIP_LAYERS:
            if _LAYERS.fullmatch(argument):
                result.append(SKIP_LAYERS)
            else:
                follows_flag = False
        result.append(argument)
    return result
