"""The command line: ``laguna-ref COMMAND``.

One command a file, named after it; a command's module is imported when the command is asked
for, and imports what it needs when it runs. Results go to stdout, progress and notes to stderr.
Exit codes: 0 fine, 1 a check that failed, 2 bad usage or input, 3 inconclusive, 130 interrupted,
141 whoever read stdout went away.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from laguna_ref.cli.allocator import keep_freed_memory
from laguna_ref.cli.errors import run

COMMANDS = (
    "generate",
    "chat",
    "logits",
    "inspect",
    "trace",
    "synth",
    "golden",
    "conform",
    "diagnose",
    "explain",
    "serve",
    "bench",
)


class LazyGroup(click.Group):
    """Finds a command in the module of its name; turns errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The ``command`` of ``laguna_ref.cli.NAME``."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"laguna_ref.cli.{cmd_name}").command
        return command

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Runs the command line and exits; see ``laguna_ref.cli.errors`` for the exit codes."""
        options["standalone_mode"] = False
        return run(super().main, args, *rest, **options)


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from laguna_ref import __version__

        click.echo(f"laguna-ref {__version__}")
        context.exit()


@click.group(
    "laguna-ref",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Reference implementation and test oracle for poolside's Laguna XS.2."""
    keep_freed_memory()
