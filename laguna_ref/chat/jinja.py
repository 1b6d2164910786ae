"""Runs a checkpoint's own chat template, as Transformers does.

The template is code from wherever the checkpoint came from. jinja2's immutable sandbox keeps it
from Python's internals and from changing what it is given; ``range`` is bounded there, products
and powers and the length of the prompt are bounded here. Nothing bounds its time, nor the memory
of text that is joined in a loop: loops inside loops, or a wide format, can still keep a machine
busy. Who serves checkpoints of strangers puts a limit on the process.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateSyntaxError, nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from laguna_ref.errors import TemplateError

MAX_PROMPT = 64 * 1024 * 1024
"""Characters of a rendered prompt: over a hundred for each token of the longest context."""
MAX_POWER = 4096
"""Greatest magnitude of either side of a power; no released template has one."""


class JinjaTemplate:
    """A compiled template; ``source`` names it in errors."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._environment = _environment()
        try:
            code = self._environment.compile(text, name=source, filename=source)
        except TemplateSyntaxError as problem:
            raise TemplateError(
                f"not a template ({problem.message})", file=f"{source}:{problem.lineno}"
            ) from problem
        except (RecursionError, MemoryError, ValueError) as problem:
            raise TemplateError(f"not a template ({problem})", file=source) from problem
        self._template = self._environment.template_class.from_code(
            self._environment, code, dict(self._environment.globals)
        )

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text; raises TemplateError, naming the template's line, for whatever goes wrong."""
        try:
            return "".join(self._bounded(self._template.generate(dict(variables))))
        except TemplateError:
            raise
        except Exception as problem:  # a template can raise what Python can
            what = str(problem) if isinstance(problem, JinjaError) else repr(problem)
            raise TemplateError(what, file=self._place(problem)) from problem

    def _bounded(self, parts: Iterator[str]) -> Iterator[str]:
        length = 0
        for part in parts:
            length += len(part)
            if length > MAX_PROMPT:
                raise TemplateError(
                    "rendered prompt too long", file=self.source, expected=f"<= {MAX_PROMPT}"
                )
            yield part

    def _place(self, problem: Exception) -> str:
        """Template and line, from the traceback that jinja2 rewrites to the template's lines."""
        lines = [
            line
            for frame, line in traceback.walk_tb(problem.__traceback__)
            if frame.f_code.co_filename == self.source
        ]
        return f"{self.source}:{lines[-1]}" if lines else self.source


class _Sandbox(ImmutableSandboxedEnvironment):
    """With products and powers that cannot fill the memory in one step."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and max(abs(left), abs(right)) > MAX_POWER:
            raise SecurityError("power too large")
        if operator == "*" and _size(left) * _size(right) > MAX_PROMPT:
            raise SecurityError("product too large")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    """Length of a sequence, a number's magnitude when it may repeat one."""
    if isinstance(value, int):
        return min(abs(value), MAX_PROMPT + 1)
    return len(value) if hasattr(value, "__len__") else 1


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's part for training; here it writes its body."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    @pass_eval_context
    def _body(self, _: Any, caller: Any) -> Any:
        return caller()


def _environment() -> _Sandbox:
    """Transformers' settings: ``utils/chat_template_utils.py``, ``_compile_jinja_template``."""
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own would escape ``<`` and ``&`` for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise JinjaError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
