"""From messages to the text of a prompt: a checkpoint's own template, or a released layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laguna_ref.chat.layouts import LAYOUTS, Piece
from laguna_ref.errors import InputError, TemplateError
from laguna_ref.json_file import read_json

if TYPE_CHECKING:
    from laguna_ref.chat.jinja import JinjaTemplate

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
MAX_TEMPLATE_BYTES = 1024 * 1024
NAMED_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""Given to a template by these names, as Transformers does."""


class Template:
    """Renders conversations; ``layout`` is "xs2", "xs2.1", or "jinja" for a checkpoint's own."""

    def __init__(
        self,
        layout: str,
        jinja: JinjaTemplate | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.layout = layout
        self._jinja = jinja
        self._variables = dict(variables or {})

    @classmethod
    def builtin(cls, layout: str) -> Template:
        """A released layout in Python; raises InputError for a name there is not."""
        if layout not in LAYOUTS:
            raise InputError(
                "no such layout", key="layout", expected=" or ".join(LAYOUTS), found=repr(layout)
            )
        return cls(layout)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Template:
        """The template of a checkpoint, else XS.2's layout; raises TemplateError.

        ``chat_template.jinja`` comes before the key ``chat_template`` of tokenizer_config.json.
        """
        config_file = Path(folder) / CONFIG_FILE
        config = read_json(config_file, TemplateError) if config_file.exists() else {}
        found = _template_text(Path(folder), config)
        if found is None:
            return cls.builtin("xs2")
        from laguna_ref.chat.jinja import JinjaTemplate

        return cls("jinja", JinjaTemplate(*found), _named_tokens(config))

    @classmethod
    def from_file(cls, file: str | Path, folder: str | Path) -> Template:
        """A Jinja template of any name, with the named tokens of the checkpoint in ``folder``."""
        from laguna_ref.chat.jinja import JinjaTemplate

        config_file = Path(folder) / CONFIG_FILE
        config = read_json(config_file, TemplateError) if config_file.exists() else {}
        return cls("jinja", JinjaTemplate(_read(Path(file)), str(file)), _named_tokens(config))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt's text; raises TemplateError.

        ``messages`` have the template's shape, see ``laguna_ref.chat.messages``. ``kwargs`` are
        the template's own: ``enable_thinking``, ``render_assistant_messages_raw``; one that it
        does not know has no effect.
        """
        given = {**kwargs, "tools": tools, "add_generation_prompt": add_generation_prompt}
        if self._jinja is None:
            return "".join(piece.text for piece in LAYOUTS[self.layout](messages, **given))
        return self._jinja.render({**self._variables, **given, "messages": list(messages)})

    def pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> tuple[Piece, ...] | None:
        """What ``render`` joins, each with its origin; None where that cannot be told.

        A checkpoint's own template has the pieces of the layout that it follows, as long as both
        write the same text.
        """
        layout = self.follows
        if layout is None:
            return None
        given = {**kwargs, "tools": tools, "add_generation_prompt": add_generation_prompt}
        pieces = tuple(LAYOUTS[layout](messages, **given))
        if self._jinja is not None:
            rendered = self.render(messages, **given)
            if "".join(piece.text for piece in pieces) != rendered:
                return None
        return pieces

    @cached_property
    def follows(self) -> str | None:
        """The released layout that this is, or that a checkpoint's template was found to write."""
        if self._jinja is None:
            return self.layout
        from laguna_ref.chat.probes import writes_the_same

        return next((name for name in LAYOUTS if writes_the_same(self, Template(name))), None)


def _template_text(folder: Path, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """The template and the name of its file."""
    file = folder / TEMPLATE_FILE
    if file.exists():
        return _read(file), str(file)
    text = config.get("chat_template")
    if isinstance(text, list):
        text = _default_of(text)
    if text is None:
        return None
    source = f"{folder / CONFIG_FILE}: chat_template"
    if not isinstance(text, str):
        raise TemplateError(
            "not a template", file=source, expected="a string, or named ones with a default",
            found=type(text).__name__,
        )  # fmt: skip
    return text, source


def _default_of(named: Sequence[Any]) -> Any:
    """Of several templates with names, as Transformers stores them, the one named default."""
    for entry in named:
        if isinstance(entry, dict) and entry.get("name") == "default":
            return entry.get("template")
    return named


def _read(file: Path) -> str:
    try:
        data = file.read_bytes()
        if len(data) > MAX_TEMPLATE_BYTES:
            raise TemplateError(
                "template too large", file=file, expected=MAX_TEMPLATE_BYTES, found=len(data)
            )
        return data.decode("utf-8")
    except OSError as problem:
        raise TemplateError(f"cannot be read ({problem.strerror})", file=file) from problem
    except UnicodeDecodeError as problem:
        raise TemplateError(f"is not UTF-8 (byte {problem.start})", file=file) from problem


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and its like, each a string or an object with the key content."""
    tokens = {}
    for name in NAMED_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens
