"""How a command ends: exit codes, and errors as one line on stderr or one object on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from laguna_ref.errors import LagunaError

BAD_INPUT = 2
INTERRUPTED = 130
"""128 + SIGINT, as shells count."""
BROKEN_PIPE = 141
"""128 + SIGPIPE."""
UNFORESEEN = 70
"""EX_SOFTWARE of sysexits.h: Python's own 1 would be the verdict that something is wrong."""


def run(main: Callable[..., Any], args: Sequence[str] | None, *rest: Any, **options: Any) -> Any:
    """Calls click's ``main`` outside its standalone mode, then exits with the right code."""
    arguments = list(sys.argv[1:] if args is None else args)
    as_json = "--json" in arguments[: _end_of_options(arguments)]
    _never_fail_on_encoding()
    try:
        code = main(arguments, *rest, **options)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as problem:
        click.echo(problem.ctx.get_help() if problem.ctx else problem.message, err=True)
        code = BAD_INPUT
    except click.ClickException as problem:
        code = _report(problem, as_json)
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except LagunaError as problem:
        code = _report(problem, as_json)
    except BrokenPipeError:
        code = BROKEN_PIPE
    except SystemExit as problem:
        code = BROKEN_PIPE if _of_a_closed_pipe(problem) else _unforeseen(problem, as_json)
    except OSError as problem:
        code = _report(problem, as_json)
    except Exception as problem:
        code = _unforeseen(problem, as_json)
    _leave(code if isinstance(code, int) else 0)


def error_object(problem: BaseException) -> dict[str, Any]:
    """The parts of an error for ``--json``; those that an error does not have are null."""
    parts: dict[str, Any] = dict.fromkeys(
        ("type", "message", "file", "tensor", "key", "expected", "found")
    )
    parts |= {"type": type(problem).__name__, "message": one_line(problem)}
    if isinstance(problem, click.UsageError):
        parts["type"] = "UsageError"  # the names of its kinds differ between versions of click
    if isinstance(problem, LagunaError):
        parts |= {
            name: getattr(problem, name)
            for name in ("message", "file", "tensor", "key", "expected", "found")
        }
    elif isinstance(problem, OSError):
        parts |= {"message": problem.strerror or str(problem), "file": problem.filename}
    return parts


def one_line(problem: BaseException) -> str:
    """What went wrong, on one line, without the type."""
    if isinstance(problem, click.ClickException):
        text = problem.format_message()
        context = getattr(problem, "ctx", None)
        if isinstance(problem, click.UsageError) and context is not None:
            text += f" (see {context.command_path} --help)"
    elif isinstance(problem, OSError):
        text = f"{problem.filename}: {problem.strerror}" if problem.filename else str(problem)
    else:
        text = str(problem)
    return " ".join(text.split())


def _report(problem: Exception, as_json: bool) -> int:
    """Prints the error; returns the exit code."""
    with contextlib.suppress(BrokenPipeError):
        if as_json:
            click.echo(_as_json(error_object(problem)))
        else:
            click.echo(f"Error: {one_line(problem)}", err=True)
    return BAD_INPUT


def _of_a_closed_pipe(problem: SystemExit) -> bool:
    """Outside standalone mode click exits for nothing but a closed pipe, nor does rich."""
    frames = [frame for frame, _ in traceback.walk_tb(problem.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return module.partition(".")[0] in ("click", "rich")


def _unforeseen(problem: BaseException, as_json: bool) -> int:
    """Prints where it came from, as Python does; returns the exit code."""
    with contextlib.suppress(BrokenPipeError):
        click.echo("".join(traceback.format_exception(problem)), err=True, nl=False)
        if as_json:
            click.echo(_as_json(error_object(problem)))
    return UNFORESEEN


def _as_json(parts: dict[str, Any]) -> str:
    """JSON proper: NaN and infinities, which it cannot spell, become words."""
    try:
        return json.dumps({"error": parts}, default=str, allow_nan=False)
    except ValueError:
        words = {name: None if value is None else str(value) for name, value in parts.items()}
        return json.dumps({"error": words})


def _leave(code: int) -> NoReturn:
    """Exits; what cannot be written to a closed pipe any more is dropped without a word."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    if code == BROKEN_PIPE:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _never_fail_on_encoding() -> None:
    """A terminal that cannot show a character gets its escape instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and (stream.encoding or "").lower() not in ("utf-8", "utf8"):
            reconfigure(errors="backslashreplace")


def _end_of_options(arguments: Sequence[str]) -> int:
    return arguments.index("--") if "--" in arguments else len(arguments)
