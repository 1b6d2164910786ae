"""From the engine's thread to the event loop: the updates of a request's jobs as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from laguna_ref.server import errors
from laguna_ref.server.engine import Engine
from laguna_ref.server.job import Job, Update


class Answers:
    """An async iterator of ``(index of the job, update)``; always ``close`` it.

    Raises ApiError when the queue is full or the server is shutting down.
    """

    def __init__(self, engine: Engine, jobs: list[Job]) -> None:
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()

        def deliver(index: int, update: Update) -> None:
            loop.call_soon_threadsafe(updates.put_nowait, (index, update))

        self._engine = engine
        self._updates = updates
        self._sequences = engine.submit(jobs, deliver)
        self._open = set(range(len(jobs)))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Update]]:
        while self._open:
            index, update = await self._updates.get()
            if index not in self._open:
                continue
            if update.error is not None:
                raise errors.internal()
            if update.finish is not None:
                self._open.discard(index)
            yield index, update

    def end(self, index: int) -> None:
        """No more of this one is wanted."""
        self._open.discard(index)
        if not self._sequences[index].ended:
            self._engine.cancel([self._sequences[index]])

    def close(self) -> None:
        """Frees the places of those that have not ended."""
        if self._open:
            self._engine.cancel([self._sequences[index] for index in self._open])
            self._open.clear()


def require_whole(update: Update) -> None:
    """Raises ApiError where an answer that is not streamed was broken off."""
    if update.finish is not None and update.finish.reason == "abort":
        raise errors.timed_out() if update.finish.why == "timeout" else errors.shutting_down()
