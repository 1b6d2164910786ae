"""``laguna-ref diagnose``: the name of the bug."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from laguna_ref.cli.options import IGNORE_OPTION, JSON_OPTION
from laguna_ref.cli.output import console, note, print_json
from laguna_ref.cli.steps import steps

if TYPE_CHECKING:
    from laguna_ref.conformance.backend import Backend


@click.command("diagnose")
@click.argument("name", metavar="BACKEND|DUMP")
@click.option(
    "--model", metavar="PATH", help="Checkpoint that both sides open.  [default: laguna-tiny]"
)
@click.option(
    "--precision", metavar="NAME",
    help="What the backend computes in: float32, bfloat16, bfloat16+fp8-kv, f16-kv or int8.  "
    "[default: what it declares]",
)  # fmt: skip
@click.option(
    "--logits-only", is_flag=True, help="Look at no trace, also where the backend has one."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@IGNORE_OPTION
@JSON_OPTION
def command(
    name: str,
    model: str | None,
    precision: str | None,
    logits_only: bool,
    threads: int | None,
    ignore_config_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Name what is wrong: which known bug makes the oracle compute what BACKEND computes.

    BACKEND as for conform; DUMP is one safetensors dump (docs/golden-format.md). Exit 0: nothing
    is wrong; 1: something is, named or unknown; 3: inconclusive.
    """
    from laguna_ref.conformance.backend import declared_precision, describe
    from laguna_ref.conformance.conform import oracle_of
    from laguna_ref.conformance.diagnosis.diagnose import diagnose
    from laguna_ref.conformance.diagnosis.prompts import ask
    from laguna_ref.conformance.precision import stated_precision

    backend = _backend(name, model)
    oracle = oracle_of(backend, model, threads=threads, ignore_config_keys=ignore_config_key)
    declared = stated_precision(precision) or declared_precision(backend)
    with steps(not as_json) as progress:
        progress("asking", 0, 1)
        asked = ask(backend, oracle.config)
        observations = asked.observations
        if logits_only:
            observations = [
                replace(each, points={"lm_head": each.points["lm_head"]})
                for each in observations
                if "lm_head" in each.points
            ]
        result = diagnose(oracle, observations, declared, progress=progress)
    result = result.with_prompts(asked.left_out, asked.failed)
    result.backend = describe(backend)
    for problem in asked.left_out + asked.failed:
        note(problem)
    if as_json:
        print_json(result.to_json())
    else:
        result.print(console())
    return result.exit_code


def _backend(name: str, model: str | None) -> Backend:
    """A backend by its name, or one dump by its file."""
    from laguna_ref.conformance.adapters import opener
    from laguna_ref.conformance.adapters.dump_folder import DumpBackend
    from laguna_ref.load import resolve

    if Path(name).is_file():
        return DumpBackend(Path(name))
    return opener(name)(resolve(model))
