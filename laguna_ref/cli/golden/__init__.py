"""``laguna-ref golden``: results that any machine can recompute. One subcommand a file."""

from __future__ import annotations

import click

from laguna_ref.cli.golden.compare import compare
from laguna_ref.cli.golden.make import make
from laguna_ref.cli.golden.show import show
from laguna_ref.cli.golden.verify import verify


@click.group("golden")
def command() -> None:
    """Golden results, and others' held against them (docs/golden-format.md)."""


for subcommand in (make, show, verify, compare):
    command.add_command(subcommand)
