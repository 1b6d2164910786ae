"""``laguna-ref conform``: a backend held against the oracle, case by case and law by law."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.options import IGNORE_OPTION, JSON_OPTION
from laguna_ref.cli.output import print_json
from laguna_ref.cli.report import HTML_OPTION, require_folder_of, show
from laguna_ref.cli.steps import steps
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.conformance.backend import Backend, Opener
    from laguna_ref.conformance.conform import Progress
    from laguna_ref.conformance.conform_report import ConformReport
    from laguna_ref.model import Laguna


@click.command("conform")
@click.argument("name", metavar="BACKEND")
@click.option(
    "--model", metavar="PATH", help="Checkpoint that both sides open.  [default: laguna-tiny]"
)
@click.option(
    "--golden", "goldens", multiple=True, type=click.Path(path_type=Path), metavar="FILE|FOLDER",
    help="Goldens whose prompts are put to it; may be repeated.  [default: those of laguna-tiny]",
)  # fmt: skip
@click.option("--case", "only", multiple=True, metavar="NAME", help="Only this case; repeatable.")
@click.option(
    "--runs", type=click.IntRange(min=4), default=400, show_default=True,
    help="Legal runs that measure the noise of a case; 400 keep a false-alarm rate of 1 %.",
)  # fmt: skip
@click.option(
    "--laws/--no-laws", default=True, show_default=True,
    help="Also put the laws to it (needs the conformance extra).",
)  # fmt: skip
@click.option(
    "--examples", type=click.IntRange(min=1), default=20, show_default=True,
    help="Examples drawn for each law.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the laws' examples.")
@click.option(
    "--reproduce", metavar="FOLDER|WORD",
    help="Judge one broken example of a law again, as a report names it, and nothing else.",
)  # fmt: skip
@HTML_OPTION
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@IGNORE_OPTION
@JSON_OPTION
def command(
    name: str,
    model: str | None,
    goldens: tuple[Path, ...],
    only: tuple[str, ...],
    runs: int,
    laws: bool,
    examples: int,
    seed: int,
    reproduce: str | None,
    html: Path | None,
    threads: int | None,
    ignore_config_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Hold an implementation against the oracle: exit 0 conforming, 1 diverges, 3 inconclusive.

    BACKEND is transformers[:DEVICE], vllm, mlx, llamacpp, openai:URL, dump:FOLDER,
    python:MODULE:FACTORY or oracle[:NUMERICS]. The noise of a case is measured once and kept.
    """
    from laguna_ref.conformance.adapters import opener
    from laguna_ref.conformance.conform import conform, oracle_of
    from laguna_ref.conformance.prepared import chosen, prepared
    from laguna_ref.load import resolve

    require_folder_of(html)
    opens = opener(name)
    backend = opens(resolve(model))
    oracle = oracle_of(backend, model, threads=threads, ignore_config_keys=ignore_config_key)
    if reproduce is not None:
        return _reproduced(opens, backend, oracle, reproduce, as_json)
    cases = chosen(prepared(oracle, goldens), only)
    with steps(not as_json) as progress:
        report = conform(backend, oracle, cases, runs=runs, progress=progress)
        if laws:
            _put_laws(report, opens, backend, oracle, progress, examples=examples, seed=seed)
    return show(report, html, as_json=as_json)


def _put_laws(
    report: ConformReport, opens: Opener, backend: Backend, oracle: Laguna, progress: Progress,
    **options: Any,
) -> None:  # fmt: skip
    """Puts the laws to it, unless there is a reason not to, which the report then names."""
    from laguna_ref.conformance.backend import BackendError, why_no_laws

    reason = report.died or why_no_laws(backend)
    if reason is not None:
        report.left_out.append(f"laws: {reason}")
        return
    laws = _laws()
    serves_one = getattr(backend, "serves_one_model", False)
    try:
        report.laws = laws.run(
            None if serves_one else opens, backend, oracle=oracle,
            progress=lambda law, done, total: progress(f"law {law}", done, total), **options,
        )  # fmt: skip
    except BackendError as problem:  # it opens no drawn model; what was judged stands
        report.left_out.append(f"laws: {problem}")


def _reproduced(
    opens: Opener, backend: Backend, oracle: Laguna, reproduce: str, as_json: bool
) -> int:
    from laguna_ref.conformance.report import EXIT_CODES

    serves_one = getattr(backend, "serves_one_model", False)
    result = _laws().replay(None if serves_one else opens, backend, reproduce, oracle=oracle)
    if as_json:
        print_json({"laws": [result.to_json()]})
    else:
        click.echo(f"{result.status}  {result.law}{': ' if result.detail else ''}{result.detail}")
    verdict = {"holds": "conforming", "broken": "diverges"}.get(result.status, "inconclusive")
    return EXIT_CODES[verdict]


def _laws() -> Any:
    """The laws; raises InputError where Hypothesis is not installed."""
    try:
        from laguna_ref.conformance import laws
    except ModuleNotFoundError as problem:
        if problem.name != "hypothesis":
            raise
        raise InputError(
            "hypothesis is not installed, and laws are drawn by it",
            expected="pip install 'laguna-ref[conformance]', or --no-laws",
        ) from problem
    return laws
