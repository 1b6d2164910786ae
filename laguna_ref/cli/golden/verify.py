"""``laguna-ref golden verify``: compute again, and compare bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.options import IGNORE_OPTION, JSON_OPTION
from laguna_ref.cli.output import print_json, print_table, progress

if TYPE_CHECKING:
    from laguna_ref.golden.hashes import HashCase
    from laguna_ref.golden.verify import Verified

DIFFERS = 1
MOST_POINTS = 20
"""Rows of the table of differences; ``--json`` has them all."""


@click.command("verify")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE|FOLDER]...")
@click.option(
    "--hashes", type=click.Path(dir_okay=False, path_type=Path),
    help="File of hashes of the embedded checkpoint's logits.",
)  # fmt: skip
@click.option(
    "--model", metavar="PATH", help="Checkpoint of the golden files.  [default: laguna-tiny]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@IGNORE_OPTION
@JSON_OPTION
def verify(
    paths: tuple[Path, ...],
    hashes: Path | None,
    model: str | None,
    threads: int | None,
    ignore_config_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Recompute golden files and compare, bit for bit: exit 0 equal, 1 different.

    Without arguments: the hashes and the goldens of laguna-tiny that come with the package. The
    numba engine gives the same bits for any number of threads, any chunking of the prompt and
    any CPU, so a difference means a defect of this machine, its compiler or this package.
    """
    from laguna_ref.golden.hashes import COMMITTED, read_hashes
    from laguna_ref.golden.hashes import verify as recompute
    from laguna_ref.golden.jobs import ModelSpec, absolute
    from laguna_ref.golden.verify import COMMITTED_GOLDENS, golden_files, verify_file

    if not paths and hashes is None and model is None:
        hashes, paths = COMMITTED, (COMMITTED_GOLDENS,)
    if model is not None and not paths:
        raise click.UsageError("--model needs golden files to verify")
    cases = read_hashes(hashes) if hashes is not None else []
    files = [file for path in paths for file in golden_files(path)]
    spec = ModelSpec(absolute(model), threads=threads, ignore_config_keys=ignore_config_key)
    found: list[tuple[HashCase, str]] = []
    verified: list[Verified] = []
    with progress("verify", unit="cases", shown=not as_json) as bar:
        for pair in recompute(cases, "numba", threads):
            found.append(pair)
            bar(len(found), len(cases) + len(files))
        for file in files:
            verified.append(verify_file(file, spec))
            bar(len(found) + len(verified), len(cases) + len(files))
    rows = [_of_hash(case, value) for case, value in found] + [_of_file(one) for one in verified]
    equal = all(row["expected"] == row["found"] for row in rows)
    if as_json:
        print_json({"verdict": "equal" if equal else "different", "cases": rows})
    else:
        _print(rows)
        click.echo("all equal" if equal else "this machine computes something else")
    return 0 if equal else DIFFERS


def _of_hash(case: HashCase, found: str) -> dict[str, Any]:
    return {
        "name": case.name,
        "tokens": len(case.tokens),
        "numerics": case.numerics,
        "kv_cache": case.kv_cache,
        "expected": case.sha256,
        "found": found,
    }


def _of_file(one: Verified) -> dict[str, Any]:
    return {
        "name": one.golden.case.name,
        "file": str(one.path),
        "tokens": len(one.golden.case.tokens),
        "numerics": one.golden.settings["numerics"],
        "kv_cache": one.golden.case.kv_cache,
        "expected": one.expected,
        "found": one.found,
        "differences": [
            {
                "point": difference.name,
                "elements": difference.elements,
                "differing": difference.differing,
                "greatest": difference.greatest,
            }
            for difference in one.differences
        ],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    print_table(
        ["case", ">tokens", "numerics", "kv cache", "sha256", ""],
        [
            (
                row["name"], row["tokens"], row["numerics"], row["kv_cache"], row["found"][:16],
                "equal" if row["found"] == row["expected"]
                else f"DIFFERS from {row['expected'][:16]}",
            )
            for row in rows
        ],
    )  # fmt: skip
    for row in rows:
        differences = row.get("differences")
        if not differences:
            continue
        print_table(
            ["point", ">elements", ">differing", ">greatest difference"],
            [
                (
                    d["point"], d["elements"], d["differing"],
                    "another shape or type" if d["greatest"] is None else f"{d['greatest']:.3g}",
                )
                for d in differences[:MOST_POINTS]
            ],
            title=f"{row['name']}: {len(differences)} tensors differ",
        )  # fmt: skip
