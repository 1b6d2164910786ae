"""``laguna-ref explain``: looking into the model. One subcommand a file, imported when asked for."""

from __future__ import annotations

from importlib import import_module

import click

VIEWS = ("token", "attention", "routing", "rope", "weight", "kv", "diff")


class Views(click.Group):
    """Finds a view in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of docs/explain.md."""
        return list(VIEWS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The ``command`` of ``laguna_ref.cli.explain.NAME``."""
        if cmd_name not in VIEWS:
            return None
        command: click.Command = import_module(f"laguna_ref.cli.explain.{cmd_name}").command
        return command


@click.group("explain", cls=Views)
def command() -> None:
    """What the model does inside, as a terminal view, --json numbers or a --plot.

    docs/explain.md shows each view and says what its numbers are.
    """
