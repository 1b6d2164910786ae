"""``laguna-ref explain prompt``: a conversation as the model reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.explain.conversation import Conversation, read_conversation
from laguna_ref.cli.options import JSON_OPTION
from laguna_ref.cli.output import note, print_json

if TYPE_CHECKING:
    from laguna_ref.chat.prompt import Prompt
    from laguna_ref.chat.template import Template
    from laguna_ref.chat.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Explained:
    """A prompt and what it was made with."""

    prompt: Prompt
    tokenizer: Tokenizer
    template: Template
    mode: str
    keywords: Mapping[str, Any]


@click.command("prompt")
@click.argument("messages", required=False, metavar="[MESSAGES]")
@click.option("--user", metavar="TEXT", help="A user's message, after those of MESSAGES.")
@click.option("--system", metavar="TEXT", help="A system message before all others.")
@click.option(
    "--tools", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Tools as the API takes them: a JSON array.",
)  # fmt: skip
@click.option("--think/--no-think", default=None, help="Thinking on or off (enable_thinking).")
@click.option(
    "--mode",
    type=click.Choice(["safe", "released"]),
    default="safe",
    show_default=True,
    help="Whether control text in messages stays text, or becomes control tokens as in the "
    "released engines.",
)
@click.option(
    "--layout",
    type=click.Choice(["xs2", "xs2.1"]),
    help="A released layout.  [default: the checkpoint's own template]",
)
@click.option(
    "--generation-prompt/--no-generation-prompt",
    default=True,
    show_default=True,
    help="End with the beginning of the assistant's turn.",
)
@click.option(
    "--chat-template-kwargs", metavar="JSON", help="Further keywords for the template: an object."
)
@click.option(
    "--model",
    metavar="PATH",
    help="Checkpoint whose tokenizer and template are used; no weights are read. "
    "Default: laguna-tiny.",
)
@JSON_OPTION
def prompt(
    messages: str | None,
    user: str | None,
    system: str | None,
    tools: Path | None,
    think: bool | None,
    mode: str,
    layout: str | None,
    generation_prompt: bool,
    chat_template_kwargs: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Show a conversation as the model reads it: the rendered prompt, its tokens, ids and roles.

    MESSAGES is a JSON file, - for stdin: an array of messages as the OpenAI API takes them, or
    the body of a chat request.
    """
    from laguna_ref.chat.prompt import encode
    from laguna_ref.chat.template import Template
    from laguna_ref.chat.tokenizer import Tokenizer
    from laguna_ref.load import resolve

    asked = read_conversation(messages, user, system, tools, chat_template_kwargs)
    keywords = _keywords(asked, think)
    folder = resolve(model)
    tokenizer = Tokenizer.from_folder(folder)
    template = Template.from_folder(folder) if layout is None else Template.builtin(layout)
    made = encode(
        tokenizer, template, asked.messages, tools=asked.tools, mode=mode,
        add_generation_prompt=generation_prompt, **keywords,
    )  # fmt: skip
    explained = _Explained(made, tokenizer, template, mode, keywords)
    if as_json:
        print_json(_as_json(explained))
    else:
        _print(explained)


def _keywords(asked: Conversation, think: bool | None) -> dict[str, Any]:
    return asked.keywords | ({} if think is None else {"enable_thinking": think})


def _as_json(explained: _Explained) -> dict[str, Any]:
    made = explained.prompt
    return {
        "prompt": made.text,
        "tokens": list(made.ids),
        "spans": [
            {
                "role": span.role,
                "source": span.source,
                "kind": span.kind,
                "start": span.start,
                "end": span.end,
                "text": span.text,
            }
            for span in made.spans
        ],
        "mode": explained.mode,
        "template": {"layout": explained.template.layout, "follows": explained.template.follows},
        "chat_template_kwargs": dict(explained.keywords),
    }


def _print(explained: _Explained) -> None:
    """The prompt on stdout; what there is to say of it on stderr."""
    from laguna_ref.cli.explain.tokens import print_tokens

    made = explained.prompt
    print_tokens(made, explained.tokenizer)
    control = sum(span.kind == "control" for span in made.spans)
    layout = explained.template.follows or "its own"
    note(
        f"{len(made.ids)} tokens, {control} of them control tokens; "
        f"layout {layout}, mode {explained.mode}"
    )
    if made.spans and all(span.source is None for span in made.spans if span.kind == "text"):
        note("roles are not known: the template follows no released layout")
    for kind, said in (
        ("spelled", "control text in messages, kept as text"),
        ("control", "control tokens written by messages"),
    ):
        texts = [span.text for span in made.spans if (span.kind, span.source) == (kind, "message")]
        if texts:
            counted = (f"{text} x {texts.count(text)}" for text in dict.fromkeys(texts))
            note(f"{said}: {', '.join(counted)}")
