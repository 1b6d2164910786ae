"""``laguna-ref golden show``: what golden files hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.options import JSON_OPTION
from laguna_ref.cli.output import human, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from laguna_ref.golden.golden import Golden


@click.command("show")
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE|FOLDER")
@JSON_OPTION
def show(path: Path, as_json: bool) -> None:
    """What a golden file, or each of a folder, holds; its hashes are checked on the way."""
    from laguna_ref.golden.golden_file import read_golden
    from laguna_ref.golden.verify import golden_files

    found = [(file, read_golden(file)) for file in golden_files(path)]
    reports = [_describe(file, golden) for file, golden in found]
    if as_json:
        print_json({"goldens": reports})
    elif path.is_dir():
        _print_folder(path, reports)
    else:
        _print_file(reports[0])


def _describe(file: Path, golden: Golden) -> dict[str, Any]:
    """Everything but the values, as ``--json`` prints it."""
    from dataclasses import asdict

    from laguna_ref.golden.golden_file import results_of, results_sha256, tensors_of
    from laguna_ref.golden.routing import smallest_margin

    nearest = smallest_margin(golden.routing)
    hashes = results_of(golden)
    settings = dict(golden.settings)
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "name": golden.case.name,
        "case": asdict(golden.case),
        "identity": golden.identity.to_json(),
        "settings": settings,
        "results_sha256": results_sha256(golden),
        "logits": {
            "at": list(golden.logits.at),
            "kept": "full" if golden.logits.full is not None else "summary",
        },
        "smallest_margin": None
        if nearest is None or nearest[0] == float("inf")
        else dict(zip(("margin", "layer", "token"), nearest, strict=True)),
        "budget": golden.budget_meta is not None,
        "tensors": [
            {
                "name": name,
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "sha256": hashes.get(name),
            }
            for name, array in tensors_of(golden).items()
        ],
    }


def _print_folder(path: Path, reports: list[dict[str, Any]]) -> None:
    print_table(
        [
            "case", ">tokens", "calls", "cache", "numerics", ">tensors", ">logits",
            ">nearest tie", "budget", ">size", "results",
        ],
        (
            (
                report["name"], len(report["case"]["tokens"]), _calls(report["case"]["chunks"]),
                report["case"]["kv_cache"], report["settings"]["numerics"],
                len(report["tensors"]), len(report["logits"]["at"]), _nearest(report),
                "yes" if report["budget"] else "-", human(report["bytes"], "B"),
                report["results_sha256"][:12],
            )
            for report in reports
        ),
    )  # fmt: skip
    total = sum(report["bytes"] for report in reports)
    models = sorted({report["identity"]["weights_sha256"][:12] for report in reports})
    click.echo(f"{len(reports)} goldens in {path}, {human(total, 'B')}, of model {models[0]}"
               + (" and others" if len(models) > 1 else ""))  # fmt: skip


def _print_file(report: dict[str, Any]) -> None:
    case, settings = report["case"], report["settings"]
    identity = {key: value for key, value in report["identity"].items() if value}
    shown = [
        ("file", f"{report['file']}, {human(report['bytes'], 'B')}"),
        ("tokens", f"{len(case['tokens'])}: {_some(case['tokens'])}"),
        ("positions", "0, 1, 2, …" if case["positions"] is None else _some(case["positions"])),
        ("calls", _calls(case["chunks"])),
        ("cache", f"{case['kv_cache']}, FP8 in {len(settings['kv_cache_fp8_layers'])} layers"),
        ("numerics", f"{settings['numerics']}, dequant {settings['dequant']}"),
        ("engine", settings["engine"]),
        ("logits", f"{report['logits']['kept']}, at {_some(report['logits']['at'])}"),
        ("nearest tie", _nearest(report)),
        ("budget", "measured" if report["budget"] else "none"),
        *identity.items(),
        ("results", report["results_sha256"]),
        ("made with", ", ".join(f"{k} {v}" for k, v in settings["versions"].items())),
    ]
    print_pairs(f"Golden: {report['name']}", shown)
    click.echo()
    print_table(
        ["tensor", ">shape", "type", "sha256"],
        (
            (t["name"], str(t["shape"]), t["dtype"], (t["sha256"] or "-")[:16])
            for t in report["tensors"]
        ),
    )


def _calls(chunks: list[int] | tuple[int, ...]) -> str:
    """``16 x 4, 1 x 3``."""
    runs: list[list[int]] = []
    for chunk in chunks:
        if runs and runs[-1][0] == chunk:
            runs[-1][1] += 1
        else:
            runs.append([chunk, 1])
    return ", ".join(f"{size} x {count}" if count > 1 else str(size) for size, count in runs)


def _nearest(report: dict[str, Any]) -> str:
    nearest = report["smallest_margin"]
    return "-" if nearest is None else f"{nearest['margin']:.1e} (layer {nearest['layer']})"


def _some(values: list[int] | tuple[int, ...], most: int = 12) -> str:
    text = ", ".join(map(str, values[:most]))
    return text + (", …" if len(values) > most else "")
