"""``laguna-ref golden make``: one file a case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options_but
from laguna_ref.cli.output import note, print_json, print_table, progress
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.cli.output import Progress
    from laguna_ref.golden.cases import Case
    from laguna_ref.golden.golden import Budget
    from laguna_ref.golden.jobs import Done, Job


@click.command("make", cls=ModelCommand, context_settings={"default_map": {"numerics": "float64"}})
@click.option(
    "--cases", "cases_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Cases, TOML.  [default: those that come with the package]",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="FOLDER",
    help="Where to; made if need be. Cases that are complete there are not computed again.",
)  # fmt: skip
@click.option(
    "--budget", metavar="PRECISION",
    help="Also measure the noise that a backend of this precision may show: float32, bfloat16, "
    "bfloat16+fp8-kv, f16-kv or int8. golden compare judges by it.",
)  # fmt: skip
@click.option(
    "--runs", type=click.IntRange(min=4), default=400, show_default=True,
    help="Legal variations of a case that its budget is measured by (docs/numerics.md).",
)  # fmt: skip
@click.option("--only", multiple=True, metavar="NAME", help="Case to compute; may be repeated.")
@click.option(
    "--overwrite", is_flag=True, help="Compute every case, also where its file holds a golden."
)
@click.option(
    "--scheduler", type=click.Choice(["local", "dask"]), default="local", show_default=True,
    help="dask: spread the cases over a cluster (needs the dask extra).",
)  # fmt: skip
@click.option(
    "--scheduler-address", metavar="URL",
    help="Of a running dask scheduler, tcp://host:8786; its workers must see the checkpoint and "
    "FOLDER.  [default: a cluster on this machine]",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True,
    help="Processes of a dask cluster on this machine.",
)  # fmt: skip
@model_options_but("kv_cache")
def make(
    options: ModelOptions,
    cases_file: Path | None,
    out: Path,
    budget: str | None,
    runs: int,
    only: tuple[str, ...],
    overwrite: bool,
    scheduler: str,
    scheduler_address: str | None,
    workers: int,
) -> None:
    """Compute cases and keep the results as golden files.

    Each case says which tokens, in which calls, with which cache, and what is kept of it. An
    interrupted run leaves complete files only; the same command goes on from there.
    """
    from laguna_ref.golden.cases import read_cases
    from laguna_ref.golden.jobs import ModelSpec, absolute, jobs_for

    if scheduler_address is not None and scheduler != "dask":
        raise InputError("--scheduler-address needs --scheduler dask")
    config, _ = options.read_config()
    cases = _chosen(read_cases(cases_file, config), only)
    spec = ModelSpec(
        path=absolute(options.model),
        numerics=options.numerics,
        engine=options.engine or "numba",
        dequant=options.dequant,
        kv_cache_skip_layers=options.kv_cache_skip_layers,
        threads=options.threads,
        ignore_config_keys=options.ignore_config_key,
    )
    jobs = jobs_for(spec, cases, out, overwrite=overwrite, budget=_budget(budget, runs))
    total = sum(len(case.tokens) for case in cases)
    done: list[Done] = []
    with progress("golden", unit="tokens") as bar:
        if scheduler == "dask":
            from laguna_ref.golden.cluster import run_on_dask

            for result in run_on_dask(jobs, address=scheduler_address, workers=workers):
                done.append(result)
                bar(sum(one.tokens for one in done), total)
        else:
            done += _one_after_another(jobs, bar, total)
    _report(done, options.as_json)


def _budget(precision: str | None, runs: int) -> Budget | None:
    if precision is None:
        return None
    from laguna_ref.conformance.budget import for_golden
    from laguna_ref.conformance.precision import precision_by_name

    return for_golden(precision_by_name(precision), runs)


def _chosen(cases: list[Case], only: tuple[str, ...]) -> list[Case]:
    names = [case.name for case in cases]
    for name in only:
        if name not in names:
            raise InputError("no such case", key="--only", expected=", ".join(names), found=name)
    return [case for case in cases if not only or case.name in only]


def _one_after_another(jobs: Sequence[Job], bar: Progress, total: int) -> Iterator[Done]:
    from laguna_ref.golden.jobs import run

    before = 0
    for job in jobs:
        within = 0

        def advance(tokens: int, start: int = before) -> None:
            nonlocal within
            within += tokens
            bar(start + within, total)

        result = run(job, advance)
        before += result.tokens
        bar(before, total)
        yield result


def _report(done: list[Done], as_json: bool) -> None:
    done = sorted(done, key=lambda one: one.name)
    computed = sum(one.computed for one in done)
    note(f"{computed} computed, {len(done) - computed} were complete")
    if as_json:
        print_json(
            {
                "cases": [
                    {
                        "name": one.name,
                        "file": one.path,
                        "tokens": one.tokens,
                        "computed": one.computed,
                    }
                    for one in done
                ]
            }
        )
        return
    print_table(
        ["case", ">tokens", "", "~file"],
        (
            (one.name, one.tokens, "computed" if one.computed else "was complete", one.path)
            for one in done
        ),
    )
