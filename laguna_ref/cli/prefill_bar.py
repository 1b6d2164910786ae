"""How far a prompt has come; while a checkpoint comes from disk for the first time, its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from laguna_ref.cli.output import Progress, progress

if TYPE_CHECKING:
    from laguna_ref.model import Laguna

WORTH_A_BAR = 1_000_000_000
"""Bytes still on disk that take long enough to read for a bar to be of use."""


@contextmanager
def prefill_bar(model: Laguna, tokens: int) -> Iterator[Progress]:
    """Gives the call to make after each chunk of a prompt; silent where all is quickly done.

    The first chunk finds the weights in memory or brings them there: in the latter case the bar
    shows bytes until it is done.
    """
    from laguna_ref.generate import PREFILL_CHUNK

    long = tokens > PREFILL_CHUNK
    missing = bytes_on_disk(model, min(tokens, PREFILL_CHUNK))
    if missing < WORTH_A_BAR:
        with progress("prefill", unit="tokens", shown=long) as bar:
            yield bar
        return
    with ExitStack() as shown:
        shown.enter_context(_reading(model, missing))
        next_bar: Progress | None = None

        def advance(done: int, total: int) -> None:
            nonlocal next_bar
            if next_bar is None:
                shown.close()
                next_bar = shown.enter_context(progress("prefill", unit="tokens", shown=long))
            next_bar(done, total)

        yield advance


def bytes_on_disk(model: Laguna, tokens: int) -> int:
    """About how many bytes of weights ``tokens`` tokens will have to wait for, 0 if unknown."""
    from laguna_ref.sizes import expected_weight_bytes

    in_memory = model.checkpoint.share_in_memory()
    if in_memory is None:
        return 0
    return round((1 - in_memory) * expected_weight_bytes(model.config, tokens))


@contextmanager
def _reading(model: Laguna, expected: int) -> Iterator[None]:
    """A bar of the bytes read; it moves whenever a sublayer has been computed."""
    from laguna_ref.engines import with_wrapped
    from laguna_ref.memory_use import memory_use

    engine, before = model.engine, memory_use()
    with progress("reading weights", unit="B") as bar:
        bar(0, expected)

        def add(*args: Any) -> Any:
            done = memory_use().since(before).read_bytes
            bar(done, max(done, expected))
            return engine.add(*args)

        model.engine = with_wrapped(engine, add=add)
        try:
            yield
        finally:
            model.engine = engine
