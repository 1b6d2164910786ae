"""One example at work: its model and the changed ones that a law asks for, on disk and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import laguna_ref
from laguna_ref import checkpoint
from laguna_ref.conformance.laws.example import Config, Example
from laguna_ref.conformance.laws.weights import Tensors, tensors
from laguna_ref.conformance.matrices import Matrices
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array


@dataclass
class Built:
    """A model that a law asks for: a checkpoint folder, and the oracle of it.

    Of a given model there is no folder, and an oracle only if somebody has one.
    """

    name: str
    folder: Path | None
    matrices: Matrices = field(default_factory=Matrices)
    _oracles: dict[str, Laguna] = field(default_factory=dict)
    _given: Laguna | None = None
    _options: Mapping[str, Any] = field(default_factory=dict)

    def oracle(self, numerics: str) -> Laguna:
        """The plain engine's model of these weights."""
        if self._given is not None:
            return self._given
        if numerics not in self._oracles:
            options: dict[str, Any] = {"engine": "numpy", **self._options}
            self._oracles[numerics] = laguna_ref.load(self.folder, numerics=numerics, **options)
        return self._oracles[numerics]


class Case:
    """An example and its models; each is written once, whoever opens it."""

    def __init__(
        self, example: Example, parent: Path, given: Laguna | None = None, **options: Any
    ) -> None:
        """``options``: of ``laguna_ref.load``, for the oracle that a backend is judged by."""
        self.example = example
        self._options = options
        self.tokens = list(example.tokens)
        self.models: dict[str, Built] = {}
        self._parent = parent
        self._tensors: Tensors | None = None
        if not example.config:
            self.models["drawn"] = Built("given", None, _given=given)

    @property
    def config(self) -> Config:
        """Of the drawn model."""
        return self.example.config

    @property
    def chosen(self) -> Mapping[str, int]:
        """What the law itself drew."""
        return self.example.chosen

    def tensors(self) -> Tensors:
        """Of the drawn model, as stored."""
        if self._tensors is None:
            self._tensors = tensors(self.config, self.example.seed, self.example.traits)
        return self._tensors

    def model(self) -> Built:
        """The model drawn, or the one given."""
        return self.changed("drawn", lambda stored: stored)

    def changed(
        self, name: str, change: Callable[[Tensors], Mapping[str, Array]], **config: Any
    ) -> Built:
        """The drawn model with other tensors and config keys. One ``name``, one model."""
        if name not in self.models:
            folder = self._parent / name.replace(" ", "-")
            stored = change(dict(self.tensors()))
            checkpoint.write(folder, self.config | config, stored)
            self.models[name] = Built(name, folder, _options=self._options)
        return self.models[name]
