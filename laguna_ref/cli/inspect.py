"""``laguna-ref inspect``: what a checkpoint, or a config alone, amounts to."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.errors import BAD_INPUT, error_object
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import human, print_json, print_pairs, print_table, progress
from laguna_ref.errors import InputError
from laguna_ref.ranges import ranges

if TYPE_CHECKING:
    from laguna_ref.checkpoint import Checkpoint
    from laguna_ref.config import LagunaConfig, LayerSpec
    from laguna_ref.errors import CheckpointError
    from laguna_ref.rope_spec import RopeSpec

FOLD_FROM = 13
"""Tables of at least so many layers show equal ones as one row."""


@click.command("inspect", cls=ModelCommand)
@click.option(
    "--config-only", is_flag=True,
    help="No weights: --model is a folder, a config.json or a preset such as xs2-int4.",
)  # fmt: skip
@click.option("--config", "config_file", metavar="FILE", help="Look at this config.json alone.")
@click.option(
    "--context", type=click.IntRange(min=1),
    help="Tokens in the cache.  [default: max_position_embeddings]",
)  # fmt: skip
@click.option("--all-layers", is_flag=True, help="One row a layer, equal ones too.")
@click.option(
    "--verify", is_flag=True, help="Read every value: NaN, infinities, scales, padding; exit 2."
)
@model_options
def command(
    options: ModelOptions,
    config_only: bool,
    config_file: str | None,
    context: int | None,
    all_layers: bool,
    verify: bool,
) -> int:
    """Config, layers, formats, sizes and cache of a model.

    Sizes are counted from the shapes: bytes and FLOPs are those of decoding one token at batch
    1, two FLOPs a weight, the K chosen experts only; attention over the cache comes on top.
    The cache is FP8 where the checkpoint declares it, else bfloat16 (--kv-cache, and
    --kv-cache-dtype-skip-layers, say otherwise).
    """
    opened: Checkpoint | None = None
    if config_only or config_file is not None:
        if verify:
            raise InputError("--verify needs weights; leave out --config-only and --config")
        config, source = options.read_config(config_file)
    else:
        from laguna_ref import checkpoint
        from laguna_ref.load import resolve

        path = resolve(options.model)
        if options.model in checkpoint.PRESETS and not path.exists():
            raise InputError("a preset has no weights; add --config-only", found=options.model)
        opened = checkpoint.open(path, ignore_keys=options.ignore_config_key)
        config, source = opened.config, str(opened.path)
    context = config.max_position_embeddings if context is None else context
    report = {"source": source} | describe(config, options.fp8_layers(config), context)
    if opened is not None:
        report["checkpoint"] = _describe_files(opened)
    faults = _verify(options, opened) if verify and opened is not None else None
    if faults is not None:
        report["faults"] = [error_object(fault) for fault in faults]
    if options.as_json:
        print_json(report)
    else:
        _print(config, report, all_layers)
        for fault in faults or ():
            click.echo(f"fault: {fault}")
        if faults is not None:
            click.echo(
                "verified: 1 fault" if len(faults) == 1 else f"verified: {len(faults)} faults"
            )
    return BAD_INPUT if faults else 0


def describe(config: LagunaConfig, fp8_layers: tuple[bool, ...], context: int) -> dict[str, Any]:
    """Everything that follows from the config, as ``--json`` prints it; bytes and FLOPs exact."""
    from laguna_ref.kv_cache import cache_bytes
    from laguna_ref.sizes import attention_flops, sizes

    total = asdict(sizes(config))
    total["by_format"] = {
        name: {"parameters": number, "bytes": nbytes}
        for name, (number, nbytes) in total["by_format"].items()
    }
    cache = cache_bytes(config, context, fp8_layers)
    return {
        "config": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(config).items()
            if key not in ("layers", "quantization", "defaults", "unused", "ignored", "raw")
        },
        "defaults": [
            {"key": key, "value": value, "source": origin} for key, value, origin in config.defaults
        ],
        "unused": [{"key": key, "reason": reason} for key, reason in config.unused],
        "ignored": dict(config.ignored),
        "layers": [
            _describe_layer(layer, fp8)
            for layer, fp8 in zip(config.layers, fp8_layers, strict=True)
        ],
        "sizes": total,
        "context": context,
        "kv_cache": {
            "bytes": cache,
            "total_bytes": sum(cache.values()),
            "layers": {
                kind: sum(layer.attention == kind for layer in config.layers) for kind in cache
            },
            "attention_flops": attention_flops(config, context),
        },
    }


def _describe_layer(layer: LayerSpec, fp8_cache: bool) -> dict[str, Any]:
    rope = asdict(layer.rope)
    return {
        "index": layer.index,
        "attention": layer.attention,
        "heads": layer.num_heads,
        "kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "window": layer.window,
        "rope": rope,
        "gate": layer.gate,
        "gate_activation": layer.gate_activation,
        "mlp": layer.mlp,
        "intermediate_size": layer.intermediate_size,
        "weight_format": str(layer.weight_format),
        "formats": {name: str(form) for name, form in layer.formats},
        "kv_cache": "fp8" if fp8_cache else "float",
    }


def _describe_files(opened: Checkpoint) -> dict[str, Any]:
    files = sorted({str(stored.file.path) for stored in opened.tensors.values()})
    return {
        "files": files,
        "tensors": len(opened.tensors),
        "bytes": opened.nbytes,
        "notes": list(opened.notes),
    }


def _verify(options: ModelOptions, opened: Checkpoint) -> list[CheckpointError]:
    from laguna_ref import checkpoint

    with progress("verifying", unit="B") as bar:
        return checkpoint.verify(opened.path, ignore_keys=options.ignore_config_key, progress=bar)


def _print(config: LagunaConfig, report: dict[str, Any], all_layers: bool) -> None:
    print_pairs(f"Laguna: {report['source']}", _summary(config, report))
    click.echo()
    _print_layers(report["layers"], fold=not all_layers and len(config.layers) >= FOLD_FROM)
    print_pairs("sizes", _sizes(report))
    click.echo()
    print_pairs(f"cache of {report['context']:,} tokens", _cache(report))
    for title, rows in (
        ("defaults taken", [(d["key"], f"{_value(d['value'])}  ({d['source']})")
                            for d in report["defaults"]]),
        ("keys without effect", [(u["key"], u["reason"]) for u in report["unused"]]),
        ("keys ignored, as asked", [(k, _value(v)) for k, v in report["ignored"].items()]),
    ):  # fmt: skip
        if rows:
            click.echo()
            print_pairs(title, rows)


def _summary(config: LagunaConfig, report: dict[str, Any]) -> list[tuple[str, str]]:
    experts = "none"
    if config.num_experts:
        experts = (
            f"{config.num_experts_per_tok} of {config.num_experts}, width "
            f"{config.moe_intermediate_size}, and a shared one of "
            f"{config.shared_expert_intermediate_size}; {config.moe_router_score_func} router, "
            f"x {config.moe_routed_scaling_factor:g}"
        )
    rows = [
        ("vocabulary", f"{config.vocab_size:,}"),
        ("hidden", f"{config.hidden_size:,}"),
        ("layers", str(config.num_hidden_layers)),
        ("context", f"{config.max_position_embeddings:,} tokens"),
        ("experts", experts),
        ("tokens", f"begin {config.bos_token_id}, end {', '.join(map(str, config.eos_token_id))}"),
        ("floats", config.torch_dtype),
        ("gate", f"{config.layers[0].gate_activation} of g_proj"),
    ]
    kinds = {layer.attention.removesuffix("_attention"): layer.rope for layer in config.layers}
    rows += [(f"RoPE, {kind}", _rope(rope)) for kind, rope in kinds.items()]
    files = report.get("checkpoint")
    if files:
        count = len(files["files"])
        rows.append(
            ("files", f"{count} with {files['tensors']:,} tensors, {human(files['bytes'], 'B')}")
        )
        rows += [("note", text) for text in files["notes"]]
    return rows


def _rope(rope: RopeSpec) -> str:
    text = f"{rope.rope_type}, theta {rope.rope_theta:,g}, {rope.rotary_dim} dimensions of a head"
    if rope.rope_type == "yarn":
        low, high = rope.yarn_ramp()
        text += (
            f", factor {rope.factor:g} over {rope.original_max_position_embeddings} tokens, ramp "
            f"from pair {low:g} to {high:g} (beta {rope.beta_fast:g} and {rope.beta_slow:g}), "
            f"attention factor {rope.attention_factor!r} ({rope.attention_factor_from})"
        )
    return text


def _print_layers(layers: list[dict[str, Any]], *, fold: bool) -> None:
    """One row a layer, or with ``fold`` one row for all layers that look the same."""
    rows: dict[tuple[Any, ...], list[int]] = {}
    for layer in layers:
        cells = _layer_row(layer)
        rows.setdefault(cells if fold else (*cells, layer["index"]), []).append(layer["index"])
    print_table(
        [
            "~layer", "attention", ">heads", ">window", "rope", ">theta", ">dims", ">factor",
            "gate", "mlp", "weights", "cache",
        ],
        (
            (_short_ranges(indices) + (f" ({len(indices)})" if fold else ""), *cells[:11])
            for cells, indices in rows.items()
        ),
    )  # fmt: skip


def _layer_row(layer: dict[str, Any]) -> tuple[str, ...]:
    rope = layer["rope"]
    return (
        layer["attention"].removesuffix("_attention"),
        f"{layer['heads']}/{layer['kv_heads']}",
        str(layer["window"] or "-"),
        rope["rope_type"],
        f"{rope['rope_theta']:g}",
        str(rope["rotary_dim"]),
        f"{rope['attention_factor']:.5g}",
        layer["gate"],
        f"{layer['mlp']} {layer['intermediate_size']}",
        layer["weight_format"],
        layer["kv_cache"],
    )


def _short_ranges(indices: list[int]) -> str:
    """Ranges; of many only the first two and the last."""
    parts = ranges(indices).split(", ")
    return ", ".join(parts if len(parts) <= 4 else [*parts[:2], "…", parts[-1]])


def _sizes(report: dict[str, Any]) -> list[tuple[str, str]]:
    size = report["sizes"]
    rows = [
        ("parameters", f"{human(size['parameters'])}, {human(size['active_parameters'])} active"),
        ("on disk", human(size["disk_bytes"], "B")),
    ]
    if len(size["by_format"]) > 1:
        rows += [
            (f"  {name}", f"{human(form['bytes'], 'B')} ({human(form['parameters'])} parameters)")
            for name, form in size["by_format"].items()
        ]
    touched, head = human(size["touched_bytes"], "B"), human(size["head_bytes"], "B")
    rows.append(("read per token", f"{touched} of weights, {head} of them the head"))
    flops, body = human(size["flops"], "FLOP"), human(size["flops"] - size["head_flops"], "FLOP")
    rows.append(("computed per token", f"{flops}, {body} without the head"))
    return rows


def _cache(report: dict[str, Any]) -> list[tuple[str, str]]:
    cache = report["kv_cache"]
    rows = []
    for kind, nbytes in cache["bytes"].items():
        count = cache["layers"][kind]
        layers = "1 layer" if count == 1 else f"{count} layers"
        rows.append((kind.removesuffix("_attention"), f"{human(nbytes, 'B')} in {layers}"))
    return [
        *rows,
        ("attention", f"{human(cache['attention_flops'], 'FLOP')} and all of it read per token"),
    ]


def _value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
