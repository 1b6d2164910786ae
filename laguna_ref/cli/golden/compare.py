"""``laguna-ref golden compare``: a dump held against a golden."""

from __future__ import annotations

from pathlib import Path

import click

from laguna_ref.cli.options import IGNORE_OPTION, JSON_OPTION
from laguna_ref.cli.report import HTML_OPTION, require_folder_of, show


@click.command("compare")
@click.argument("golden_file", type=click.Path(path_type=Path, dir_okay=False), metavar="GOLDEN")
@click.argument("dump_file", type=click.Path(path_type=Path, dir_okay=False), metavar="DUMP")
@click.option("--model", metavar="PATH", help="Checkpoint of the golden.  [default: laguna-tiny]")
@HTML_OPTION
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@IGNORE_OPTION
@JSON_OPTION
def compare(
    golden_file: Path,
    dump_file: Path,
    model: str | None,
    html: Path | None,
    threads: int | None,
    ignore_config_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Judge what another implementation computed, by the budget that GOLDEN was made with.

    Exit 0 conforming, 1 diverges, 3 inconclusive. docs/golden-format.md says how to write DUMP.
    """
    from laguna_ref.conformance.judge import judge
    from laguna_ref.golden.dump import read_dump
    from laguna_ref.golden.errors import GoldenError
    from laguna_ref.golden.golden_file import read_golden
    from laguna_ref.golden.jobs import ModelSpec, absolute
    from laguna_ref.golden.verify import spec_of

    require_folder_of(html)
    golden = read_golden(golden_file)
    spec = ModelSpec(absolute(model), threads=threads, ignore_config_keys=ignore_config_key)
    oracle = spec_of(golden, spec).load(golden.case.kv_cache)
    golden.require_model(oracle, str(golden_file))
    # A value that is no number is a finding of the judge's, and not bad input.
    try:
        report = judge(golden, read_dump(dump_file, finite=False), model=oracle)
    except ValueError as problem:
        raise GoldenError(f"its budget cannot be used ({problem})", file=golden_file) from problem
    return show(report, html, as_json=as_json)
