"""What a law is put to: a small config, weights from a seed, tokens, and what the law chose.

An example is a few hundred bytes of JSON, so that a failure can be sent to a maintainer and made
again anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from laguna_ref.errors import InputError

Config = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One example of one law; ``config`` is empty where the model is given and not drawn."""

    config: Config
    seed: int
    """Of the weights."""
    traits: tuple[str, ...]
    """What is unusual about the weights: see ``weights.TRAITS``."""
    tokens: tuple[int, ...]
    chosen: Mapping[str, int] = field(default_factory=dict)
    """What the law itself drew: where to cut, how far to shift."""

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Example:
        """The inverse of ``to_json``; raises InputError."""
        try:
            return cls(
                dict(raw["config"]), int(raw["seed"]), tuple(raw["traits"]),
                tuple(int(token) for token in raw["tokens"]), dict(raw["chosen"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError("not an example of a law", found=str(problem)) from problem

    @property
    def key(self) -> str:
        """Short name by content, the same everywhere."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_blob(law: str, example: Example) -> str:
    """A law's name and its example as one word."""
    text = json.dumps({"law": law, "example": example.to_json()}, separators=(",", ":"))
    return base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode()


def from_blob(blob: str) -> tuple[str, Example]:
    """The inverse of ``to_blob``; raises InputError."""
    try:
        raw = json.loads(zlib.decompress(base64.urlsafe_b64decode(blob.encode())))
        law = str(raw["law"])
    except (ValueError, zlib.error, KeyError, TypeError) as problem:
        raise InputError("not a reproduction of a law", found=blob[:40]) from problem
    return law, Example.from_json(raw["example"])
