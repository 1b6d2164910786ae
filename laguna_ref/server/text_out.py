"""From tokens to the text of an answer: half characters and possible stop texts are held back."""

from __future__ import annotations

from collections.abc import Sequence

from laguna_ref.chat.tokenizer import Tokenizer


class TextOut:
    """Takes tokens one by one and gives the text that is certain."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special: bool = True,
    ) -> None:
        self._decoder = None if tokenizer is None else tokenizer.stream()
        self._skipped = tokenizer.special_ids if tokenizer and skip_special else frozenset()
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        self.stopped: str | None = None
        """The stop text that was met."""

    def push(self, token: int) -> tuple[str, str]:
        """The token's own text, and what is now certain of the answer."""
        own = "" if self._decoder is None or token in self._skipped else self._decoder.push(token)
        return own, self._certain(own, final=False)

    def finish(self) -> str:
        """What was held back."""
        rest = "" if self._decoder is None else self._decoder.finish()
        return self._certain(rest, final=True)

    def _certain(self, piece: str, *, final: bool) -> str:
        if self.stopped is not None:
            return ""
        self._held += piece
        met = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if met:
            start, self.stopped = min(met, key=lambda one: one[0])
            end = start + (len(self.stopped) if self._include_stop else 0)
            return self._held[:end]
        keep = 0 if final else self._possible_start()
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return certain

    def _possible_start(self) -> int:
        """Length of the longest end of the text that a stop text begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
