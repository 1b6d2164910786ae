"""Cases: which tokens a golden is made of, how they are cut into calls, and what is kept.

They are data, a TOML file (docs/golden-format.md has the grammar)::

    format = 1

    [prompts]
    source = [2, 297, 410]              # ids; repeated from the start where a case is longer
    noise = { random = 7 }              # ids drawn from the model's vocabulary by this seed

    [[case]]
    name = "window-plus-1"
    prompt = "source"
    length = "W+1"                      # W: the model's own sliding window
    kv_cache = "fp8"
    prefill = 16                        # tokens a call, default: all at once
    decode = 3                          # tokens at the end that come one by one
    first_position = 4096               # default 0
    points = ["model.layers.*.mlp.gate"]
    logits_at = [0, "W", -1]            # default: every position

The same file serves every model: lengths follow its window and drawn ids its vocabulary.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref import checks
from laguna_ref.config import LagunaConfig
from laguna_ref.errors import InputError
from laguna_ref.golden.errors import GoldenError
from laguna_ref.load import EMBEDDED, KV_CACHE_MODES
from laguna_ref.trace import Recorder

COMMITTED_CASES = EMBEDDED.parent / "golden" / "cases.toml"
FORMAT = 1
DEFAULT_POINTS = ("model.embed_tokens", "model.layers.*[0-9]", "model.norm")
"""The residual stream: what enters layer 0, what leaves each layer, and what the head sees."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SIZE = re.compile(r"(\d*)W([+-]\d+)?")
_KEYS = {
    "name", "prompt", "length", "kv_cache", "prefill", "decode", "first_position", "points",
    "logits_at",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One computation that a golden file holds the results of."""

    name: str
    """Also the golden's file name."""
    tokens: tuple[int, ...]
    positions: tuple[int, ...] | None
    """Of RoPE, one a token; None: 0, 1, 2, …"""
    kv_cache: str
    """``checkpoint``, ``float`` or ``fp8``, as ``laguna_ref.load`` takes it."""
    chunks: tuple[int, ...]
    """How many tokens each call of the model gets; they add up to all of them."""
    points: tuple[str, ...]
    """Glob patterns of the trace points kept."""
    logits_at: tuple[int, ...] | None
    """Indices into ``tokens`` of the logits kept; None: all."""


def read_cases(path: str | Path | None = None, config: LagunaConfig | None = None) -> list[Case]:
    """The cases of a TOML file for one model.

    path: None for those that come with the package.
    config: the model's, for its window and vocabulary; None: the embedded checkpoint's.

    Raises GoldenError naming file, key, what was found and what was expected.
    """
    path = COMMITTED_CASES if path is None else Path(path)
    config = LagunaConfig.from_file(EMBEDDED) if config is None else config
    raw = _read_toml(path)
    reader = _Reader(path, config)
    reader.table(raw, "", {"format", "prompts", "case"})
    if raw.get("format") != FORMAT:
        raise reader.error("format", "unknown format", FORMAT, raw.get("format"))
    prompts, tables = raw.get("prompts"), raw.get("case")
    if not isinstance(prompts, dict) or not prompts:
        raise reader.error("prompts", "no prompts", "a table of them", prompts)
    if not isinstance(tables, list) or not tables:
        raise reader.error("case", "no cases", "at least one [[case]]", tables)
    cases = [reader.case(table, index, prompts) for index, table in enumerate(tables)]
    names = [case.name for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise reader.error("case", "two cases of one name", found=twice)
    return cases


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as problem:
        raise GoldenError(f"cannot be read ({problem.strerror})", file=path) from problem
    except UnicodeDecodeError as problem:
        raise GoldenError(f"is not UTF-8 (byte {problem.start})", file=path) from problem
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise GoldenError(f"is not valid TOML ({problem})", file=path) from problem


class _Reader:
    """Checks one file's tables against one model."""

    def __init__(self, path: Path, config: LagunaConfig) -> None:
        self.path = path
        self.config = config

    def error(self, key: str, message: str, expected: Any = None, found: Any = None) -> GoldenError:
        return GoldenError(message, file=self.path, key=key, expected=expected, found=found)

    def table(self, table: Any, at: str, known: set[str]) -> dict[str, Any]:
        """``table`` if it is one and every key of it is known."""
        if not isinstance(table, dict):
            raise self.error(at, "wrong type", "a table", type(table).__name__)
        for key in table:
            if key not in known:
                where = f"{at}.{key}" if at else key
                raise self.error(where, "unknown key", ", ".join(sorted(known)))
        return table

    def case(self, table: Any, index: int, prompts: dict[str, Any]) -> Case:
        self.table(table, f"case[{index}]", _KEYS)
        name = table.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self.error(
                f"case[{index}].name", "bad name", "small letters, digits and hyphens", name
            )
        kv_cache = table.get("kv_cache", "checkpoint")
        if kv_cache not in KV_CACHE_MODES:
            raise self.error(
                f"{name}.kv_cache", "unknown kv_cache", " or ".join(KV_CACHE_MODES), kv_cache
            )
        tokens = self._tokens(table, name, prompts)
        return Case(
            name=name,
            tokens=tokens,
            positions=self._positions(table, name, tokens),
            kv_cache=kv_cache,
            chunks=self._chunks(table, name, len(tokens)),
            points=self._points(table, name),
            logits_at=self._logits_at(table, name, len(tokens)),
        )

    def size(self, value: Any, at: str, least: int = 0) -> int:
        """A number of tokens: an integer, or a multiple of the window more or less some."""
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match:
            window = self.config.sliding_window
            if window is None:
                raise self.error(at, "the model has no sliding layer", "a number", value)
            value = int(match[1] or 1) * window + int(match[2] or 0)
        if type(value) is not int or value < least:
            raise self.error(at, "bad size", f'{least} or more, or such as "2W+1"', value)
        return value

    def _tokens(self, table: dict[str, Any], name: str, prompts: dict[str, Any]) -> tuple[int, ...]:
        chosen = table.get("prompt")
        if not isinstance(chosen, str) or chosen not in prompts:
            raise self.error(f"{name}.prompt", "no such prompt", ", ".join(prompts), chosen)
        prompt, at = prompts[chosen], f"prompts.{chosen}"
        length = self.size(table["length"], f"{name}.length", 1) if "length" in table else None
        if isinstance(prompt, dict):
            seed = self.table(prompt, at, {"random"}).get("random")
            if type(seed) is not int or seed < 0:
                raise self.error(f"{at}.random", "bad seed", "an integer, 0 or more", seed)
            if length is None:
                raise self.error(f"{name}.length", "drawn tokens need a length")
            # The raw stream, unlike what NumPy makes of it, is the same in every version.
            drawn = np.random.PCG64(seed).random_raw(length) % np.uint64(self.config.vocab_size)
            return tuple(int(token) for token in drawn)
        if not isinstance(prompt, list) or not prompt or any(type(t) is not int for t in prompt):
            raise self.error(at, "bad prompt", "token ids or { random = SEED }", prompt)
        length = len(prompt) if length is None else length
        tokens = (prompt * -(-length // len(prompt)))[:length]
        try:
            checks.tokens(tokens, self.config, 0)
        except (InputError, OverflowError) as problem:
            raise self._refused(at, problem) from None
        return tuple(tokens)

    def _positions(
        self, table: dict[str, Any], name: str, tokens: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        if "first_position" not in table:
            return None
        first = self.size(table["first_position"], f"{name}.first_position")
        positions = range(first, first + len(tokens))
        try:
            checks.positions(list(positions), self.config, 0, len(tokens))
        except (InputError, OverflowError) as problem:
            raise self._refused(f"{name}.first_position", problem) from None
        return tuple(positions)

    def _chunks(self, table: dict[str, Any], name: str, count: int) -> tuple[int, ...]:
        decode = self.size(table.get("decode", 0), f"{name}.decode")
        if decode > count:
            raise self.error(f"{name}.decode", "more tokens than there are", count, decode)
        together = count - decode
        prefill = self.size(table.get("prefill", max(together, 1)), f"{name}.prefill", 1)
        starts = range(0, together, prefill)
        return (*(min(prefill, together - start) for start in starts), *[1] * decode)

    def _points(self, table: dict[str, Any], name: str) -> tuple[str, ...]:
        points = table.get("points", list(DEFAULT_POINTS))
        if not isinstance(points, list) or any(type(point) is not str for point in points):
            raise self.error(f"{name}.points", "wrong type", "glob patterns", points)
        try:
            if points:
                Recorder(*points).require_known(self.config)
        except InputError as problem:
            raise self._refused(f"{name}.points", problem) from None
        return tuple(points)

    def _logits_at(self, table: dict[str, Any], name: str, count: int) -> tuple[int, ...] | None:
        if "logits_at" not in table:
            return None
        given, at = table["logits_at"], f"{name}.logits_at"
        if not isinstance(given, list):
            raise self.error(at, "wrong type", "a list of positions", given)
        places = set()
        for value in given:
            from_end = type(value) is int and -count <= value < 0
            place = count + value if from_end else self.size(value, at)
            if place >= count:
                raise self.error(at, "no such position", f"{-count} to {count - 1}", value)
            places.add(place)
        return tuple(sorted(places))

    def _refused(self, key: str, problem: Exception) -> GoldenError:
        if isinstance(problem, InputError):
            where = f"{problem.key}: " if problem.key else ""
            return self.error(key, f"{where}{problem.message}", problem.expected, problem.found)
        return self.error(key, str(problem))
