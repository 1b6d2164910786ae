"""``laguna-ref explain``: what happens on the way to an answer. One subcommand a file."""

from __future__ import annotations

import click

from laguna_ref.cli.explain.prompt import prompt


@click.group("explain")
def command() -> None:
    """What happens on the way to an answer, step by step."""


for subcommand in (prompt,):
    command.add_command(subcommand)
