"""``laguna-ref chat``: a conversation in the terminal."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.chat_commands import NAMES, run_command
from laguna_ref.cli.chat_input import Reader, reader
from laguna_ref.cli.chat_screen import Screen
from laguna_ref.cli.errors import one_line
from laguna_ref.cli.interrupt import interruptible
from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options_but
from laguna_ref.cli.prefill_bar import prefill_bar
from laguna_ref.cli.sampling_options import SamplingOptions, sampling_options
from laguna_ref.errors import LagunaError

if TYPE_CHECKING:
    from laguna_ref.chat.answer import Call
    from laguna_ref.chat.session import Message, Session, Turn
    from laguna_ref.model import Laguna


@click.command("chat", cls=ModelCommand)
@click.option("--system", metavar="TEXT", help="System message; '' for none. Default: the model's.")
@click.option("--tools", "tools_file", metavar="FILE", help="Tools, as the OpenAI API has them.")
@click.option(
    "--think/--no-think", default=False, show_default=True, help="Think before answering."
)
@click.option(
    "--prompt-mode",
    type=click.Choice(["safe", "released"]),
    default="safe",
    show_default=True,
    help="safe: control tokens such as </assistant> typed in a message stay text.",
)
@sampling_options
@model_options_but("as_json")
def command(
    options: ModelOptions,
    system: str | None,
    tools_file: str | None,
    think: bool,
    prompt_mode: str,
    sampling_asked: SamplingOptions,
) -> None:
    """Talk to the model; /help lists what else can be typed.

    Thinking is dimmed, tool calls are boxes; you are asked for a tool's answer. Ctrl-C stops an
    answer, Ctrl-D ends the conversation. Without a terminal each line of stdin is a message (or
    the answer of the tool that was called), and the answers go to stdout.
    """
    from laguna_ref.chat.messages import check_messages
    from laguna_ref.chat.session import Session
    from laguna_ref.cli.chat_commands import read_tools

    tools = None if tools_file is None else read_tools(tools_file)
    check_messages([] if system is None else [{"role": "system", "content": system}])
    model = options.load()
    session = Session(
        model,
        *_text_side(model),
        thinking=think,
        system=system,
        tools=tools,
        mode=prompt_mode,
        **sampling_asked.resolved(model.checkpoint),
    )
    screen = Screen()
    lines = reader(NAMES)
    if lines.interactive:
        screen.note(f"{model.checkpoint.path} · /help for help, Ctrl-D to end")
    Conversation(session, screen, lines).run()


def _text_side(model: Laguna) -> tuple[Any, Any]:
    from laguna_ref.chat import Template, Tokenizer

    folder = model.checkpoint.path
    return Tokenizer.from_folder(folder), Template.from_folder(folder)


class Conversation:
    """Reads lines, shows answers."""

    def __init__(self, session: Session, screen: Screen, lines: Reader) -> None:
        self._session = session
        self._screen = screen
        self._lines = lines

    def run(self) -> None:
        """Until the input ends or says so. Without a terminal an error ends it too."""
        while True:
            try:
                line = self._lines.read("> ")
            except KeyboardInterrupt:
                if not self._lines.interactive:
                    raise
                self._screen.note("Ctrl-D or /quit ends the conversation")
                continue
            if line is None or line.strip() in ("/quit", "/exit"):
                return
            try:
                self._take(line)
            except KeyboardInterrupt:  # before an answer began, or after it
                if not self._lines.interactive:
                    raise
                self._screen.note("[interrupted]")
            except LagunaError as problem:
                if not self._lines.interactive:
                    raise
                self._screen.error(one_line(problem))

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        if line.startswith("/") and not line.startswith("//"):
            self._screen.note(run_command(line, self._session))
            return
        text = line[1:] if line.startswith("//") else line
        messages: list[Message] | None = [{"role": "user", "content": text}]
        while messages:
            turn = self._answer(messages)
            done = turn.finish_reason == "interrupted"
            messages = None if done else self._tool_answers(turn)

    def _answer(self, messages: list[Message]) -> Turn:
        """Shows an answer as it comes, until it ends or a Ctrl-C ends it."""
        turn = self._session.begin(*messages)
        with self._screen.answering():
            try:
                self._show(turn)
            except KeyboardInterrupt:
                if not self._lines.interactive:
                    raise
        self._screen.end(turn)
        return turn

    def _show(self, turn: Turn) -> None:
        with ExitStack() as bars:
            bar = bars.enter_context(
                prefill_bar(self._session.model, len(turn.prompt) - turn.reused)
            )

            def on_prefill(done: int, total: int) -> None:
                bar(done, total)
                if done == total:
                    bars.close()

            with interruptible() as check, closing(turn.deltas(on_prefill)) as deltas:
                for delta in deltas:
                    check()
                    self._screen.show(delta)

    def _tool_answers(self, turn: Turn) -> list[Message] | None:
        """What the user says in the place of the tools; None if it is left open (Ctrl-C)."""
        calls = turn.answer.calls
        ids = [call["id"] for call in self._session.messages[-1].get("tool_calls", ())]
        answers: list[Message] = []
        for call, call_id in zip(calls, ids, strict=True):
            text = self._ask(call)
            if text is None:
                return None
            answers.append({"role": "tool", "tool_call_id": call_id, "content": text})
        return answers

    def _ask(self, call: Call) -> str | None:
        try:
            return self._lines.read(f"answer of {self._screen.printable(call.name)}> ", tool=True)
        except KeyboardInterrupt:
            if not self._lines.interactive:
                raise
            self._screen.note("left without an answer")
            return None
