"""Key/value caches of prompts seen before, for prompts that begin the same.

A sliding layer's ring cannot go back, so a cache serves one length alone: copies are kept where
others may branch off (``branches``), least recently used ones are dropped first. A cached prefix
gives the same bits as computing it, because the numba engine's bits do not depend on chunking.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np

from laguna_ref.kv_cache import KVCache

_ID = np.dtype(np.int32)
LAST_HINTS = 3
"""Ends of messages that a next turn, or the last one again, begins with."""
FIRST_BRANCH = 64
"""Shorter prefixes cost less to compute than to keep."""


class PrefixCache:
    """Caches by the tokens that they hold; at most ``max_bytes`` of them. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._caches: OrderedDict[bytes, KVCache] = OrderedDict()
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._caches)

    def find(self, prompt: Sequence[int]) -> KVCache | None:
        """A cache of its own holding the longest known prefix, at least one token short of all.

        The last token is left to compute: its logits are what the answer begins with.
        """
        whole = _key(prompt)
        for length in sorted(self._lengths, reverse=True):
            if length > len(prompt):
                continue
            key = whole[: length * _ID.itemsize]
            if key in self._caches:
                self._caches.move_to_end(key)
                found = self._caches[key].copy()
                # A ring still holds what the token before its last one needs.
                found.truncate(min(length, len(prompt) - 1))
                return found if found.length else None
        return None

    def keep(self, tokens: Sequence[int], cache: KVCache) -> None:
        """Keeps a copy of ``cache``, which holds ``tokens``, unless it would fill half the room."""
        key = _key(tokens)
        if key in self._caches:
            self._caches.move_to_end(key)
            return
        size = cache.nbytes + len(key)
        if len(tokens) < FIRST_BRANCH or size > self.max_bytes // 2:
            return
        while self.nbytes + size > self.max_bytes:
            self._drop_oldest()
        self._caches[key] = cache.copy()
        self._lengths[len(tokens)] += 1
        self.nbytes += size

    def _drop_oldest(self) -> None:
        key, cache = self._caches.popitem(last=False)
        length = cache.length
        self.nbytes -= cache.nbytes + len(key)
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]


def branches(length: int, hints: Sequence[int]) -> list[int]:
    """Lengths of a prompt worth keeping, ascending: powers of two, hints, and all of it.

    Of the hints the first (what all conversations share) and the last ones: each is a step of its
    own and a copy.

    Powers of two bound what a long prompt takes, and another that shares p tokens with it finds
    at least half of them.
    """
    powers = [FIRST_BRANCH << i for i in range(40) if FIRST_BRANCH << i < length]
    named = [hint for hint in hints if FIRST_BRANCH <= hint < length]
    return sorted({*powers, *named[:1], *named[-LAST_HINTS:], length})


def _key(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, _ID).tobytes()
