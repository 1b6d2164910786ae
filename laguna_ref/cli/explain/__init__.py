"""``laguna-ref explain``: what happens on the way to an answer. One subcommand a file.

A subcommand's module is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module

import click

SUBCOMMANDS = ("prompt", "token", "attention", "routing", "rope", "weight", "kv", "diff")


class LazySubcommands(click.Group):
    """Finds a subcommand in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of docs/explain.md."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """``NAME`` of ``laguna_ref.cli.explain.NAME``."""
        if cmd_name not in SUBCOMMANDS:
            return None
        module = import_module(f"laguna_ref.cli.explain.{cmd_name}")
        subcommand: click.Command = getattr(module, cmd_name)
        return subcommand


@click.group("explain", cls=LazySubcommands)
def command() -> None:
    """What happens on the way to an answer, step by step: a view, --json numbers or a --plot."""
