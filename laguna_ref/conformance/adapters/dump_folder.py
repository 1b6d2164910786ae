"""``dump:FOLDER``: what another implementation wrote down, one safetensors dump a prompt.

Dumps are told apart by their tokens and positions; their names mean nothing. How to write one is
in docs/golden-format.md, and no Python is needed for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.conformance import guards
from laguna_ref.conformance.backend import BackendError, Opener
from laguna_ref.conformance.inputs import points_of
from laguna_ref.errors import InputError
from laguna_ref.golden.dump import Dump, read_dump
from laguna_ref.golden.golden_file import SUFFIX
from laguna_ref.numerics import Array

TokensAt = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt: its tokens, and the positions that they stand at."""


class DumpBackend:
    """Answers for the prompts that were dumped, in a folder or one file, and for no other."""

    recorded = True
    """Nothing can be asked of it that is not there: laws do not apply."""
    capabilities: Collection[str] = ("trace", "positions")

    def __init__(self, folder: Path) -> None:
        self.name = f"dump:{folder}"
        self._dumps = _by_prompt(folder)
        metas = [dump.meta for _, dump in self._dumps.values()]
        self.version = _common(metas, "version")
        self.logits_kind = _common(metas, "logits")
        self.config = guards.stated_config({"config": _common(metas, "config")})
        self.logprobs_k = guards.stated_k({"logprobs_k": _common(metas, "logprobs_k")})
        stated = _common(metas, "precision")
        if stated is not None:
            self.precision = stated

    def has(self, tokens: Sequence[int], positions: Sequence[int] | None = None) -> bool:
        """Whether the prompt was dumped."""
        return _prompt(tokens, positions) in self._dumps

    def prompts(self) -> list[TokensAt]:
        """Tokens and positions of every dump."""
        return list(self._dumps)

    def logits(self, tokens: Sequence[int], *, positions: Sequence[int] | None = None) -> Array:
        """Logits of one dump; raises BackendError if there is no such dump or it has none."""
        path, dump = self._find(tokens, positions)
        if "lm_head" not in dump.points:
            raise BackendError("the dump holds no lm_head", key=str(path))
        return np.asarray(dump.points["lm_head"])

    def trace(
        self, tokens: Sequence[int], points: Sequence[str], *,
        positions: Sequence[int] | None = None,
    ) -> Mapping[str, Array]:  # fmt: skip
        """Those of ``points`` that the dump holds."""
        _, dump = self._find(tokens, positions)
        held = points_of(dump)
        return {name: np.asarray(held[name]) for name in points if name in held}

    def _find(self, tokens: Sequence[int], positions: Sequence[int] | None) -> tuple[Path, Dump]:
        found = self._dumps.get(_prompt(tokens, positions))
        if found is None:
            raise BackendError(
                f"{self.name}: no dump of these {len(tokens)} tokens and positions",
                found=f"{len(self._dumps)} dumps of other prompts",
            )
        return found


def opener(argument: str | None) -> Opener:
    """Raises BackendError unless ``argument`` is a folder with dumps in it."""
    if not argument or not Path(argument).is_dir():
        raise BackendError("dump: needs a folder", expected="dump:FOLDER",
                           found=f"dump:{argument or ''}")  # fmt: skip
    backend = DumpBackend(Path(argument))
    return lambda folder: backend


def _by_prompt(folder: Path) -> dict[TokensAt, tuple[Path, Dump]]:
    """Raises DumpError for a file that is no dump, BackendError for two of one prompt or for
    metadata that make no sense."""
    found: dict[TokensAt, tuple[Path, Dump]] = {}
    for path in [folder] if folder.is_file() else sorted(folder.glob(f"*{SUFFIX}")):
        dump = read_dump(path, finite=False)  # what is no number is the judge's to find
        _check(path, dump)
        prompt = _prompt(dump.tokens.tolist(), dump.positions.tolist())
        if prompt in found:
            raise BackendError("two dumps of one prompt", key=str(path),
                               found=str(found[prompt][0]))  # fmt: skip
        found[prompt] = path, dump
    if not found:
        raise BackendError("no dump in the folder", key=str(folder), expected=f"*{SUFFIX}")
    return found


def _check(path: Path, dump: Dump) -> None:
    """Raises BackendError, which names the file, for metadata that cannot be understood."""
    try:
        guards.declared_precision(dump)
        guards.stated_config(dump.meta)
        guards.stated_k(dump.meta)
    except InputError as problem:
        raise BackendError(problem.message, file=path, key=problem.key or "precision",
                           expected=problem.expected, found=problem.found) from problem  # fmt: skip


def _prompt(tokens: Sequence[int], positions: Sequence[int] | None) -> TokensAt:
    places = range(len(tokens)) if positions is None else positions
    return tuple(map(int, tokens)), tuple(map(int, places))


def _common(metas: Sequence[Mapping[str, Any]], key: str) -> Any:
    """What all dumps state; raises BackendError where they contradict each other."""
    values = sorted({str(meta[key]) for meta in metas if meta.get(key) not in (None, "")})
    if len(values) > 1:
        raise BackendError("dumps of one folder must agree", key=key, expected=values[0],
                           found=values[1])  # fmt: skip
    return values[0] if values else None
