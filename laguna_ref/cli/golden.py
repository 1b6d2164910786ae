"""``laguna-ref golden``: results that any machine can recompute."""

from __future__ import annotations

from pathlib import Path

import click

from laguna_ref.cli.options import JSON_OPTION
from laguna_ref.cli.output import print_json, print_table, progress

DIFFERS = 1


@click.group("golden")
def command() -> None:
    """Make and check golden results."""


@command.command("verify")
@click.option(
    "--hashes", type=click.Path(dir_okay=False, path_type=Path),
    help="File of hashes.  [default: those that come with the package]",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@JSON_OPTION
def verify(hashes: Path | None, threads: int | None, as_json: bool) -> int:
    """Recompute the hashes of laguna-tiny's logits and compare: exit 0 equal, 1 different.

    The numba engine gives the same bits for any number of threads, any chunking of the prompt
    and any CPU, so a difference means a defect of this machine, its compiler or this package.
    """
    from laguna_ref.golden.hashes import COMMITTED, read_hashes
    from laguna_ref.golden.hashes import verify as recompute

    cases = read_hashes(hashes or COMMITTED)
    results = []
    with progress("verify", unit="cases", shown=not as_json) as bar:
        for case, found in recompute(cases, "numba", threads):
            results.append((case, found))
            bar(len(results), len(cases))
    equal = all(case.sha256 == found for case, found in results)
    if as_json:
        print_json(
            {
                "verdict": "equal" if equal else "different",
                "cases": [
                    {
                        "name": case.name,
                        "numerics": case.numerics,
                        "kv_cache": case.kv_cache,
                        "expected": case.sha256,
                        "found": found,
                    }
                    for case, found in results
                ],
            }
        )
    else:
        print_table(
            ["case", "tokens", "numerics", "kv cache", "sha256", ""],
            [
                [
                    case.name, str(len(case.tokens)), case.numerics, case.kv_cache, found[:16],
                    "equal" if found == case.sha256 else f"DIFFERS from {case.sha256[:16]}",
                ]
                for case, found in results
            ],
        )  # fmt: skip
        click.echo("all equal" if equal else "this machine computes something else")
    return 0 if equal else DIFFERS
