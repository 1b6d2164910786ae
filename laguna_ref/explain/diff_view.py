"""Two models side by side over depth: where they part, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from laguna_ref.config import LayerSpec
from laguna_ref.errors import InputError
from laguna_ref.explain.running import OnPrefill, Watcher, checked
from laguna_ref.golden.kl import kl_divergence
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder

CHUNK = 128
"""Tokens computed at a time: all layers' vectors of one side are held for so many."""
ROWS = 32
"""Rows of logits compared at a time."""


@dataclass(frozen=True)
class LayerDiff:
    """One layer; float64 [T] each: norm of B less A over the norm of A, by token."""

    layer: LayerSpec
    residual: Array
    """Of the stream after the layer."""
    attention: Array
    """Of what attention adds; inherited error included."""
    mlp: Array
    """Of what the MLP, or the experts, add."""
    flipped: Array | None
    """int64 [T]: experts of A that B did not choose; None in a dense layer."""


@dataclass(frozen=True)
class DiffView:
    """A and B over one prompt."""

    tokens: Array
    """int64 [T]"""
    embedding: Array
    """float64 [T]: relative error of the embedding."""
    layers: tuple[LayerDiff, ...]
    kl: Array
    """float64 [T]: KL(A || B) of the next token, nats."""
    same_top: Array
    """bool [T]: whether both find the same token likeliest."""

    @property
    def first_layer(self) -> int | None:
        """The first layer that has another residual stream, None without any; -1 where the
        embedding differs already."""
        if self.embedding.any():
            return -1
        return next((one.layer.index for one in self.layers if one.residual.any()), None)


def diff(
    a: Laguna, b: Laguna, tokens: ArrayLike, *, on_prefill: OnPrefill | None = None
) -> DiffView:
    """Runs a prompt, int [T], through two models and compares them layer by layer.

    The models are made by ``laguna_ref.explain.side``, or by hand. They run in step, 128 tokens
    at a time, and what has been compared is dropped. Nothing is replayed: B follows its own
    choice of experts. A NaN on either side ends in NonFiniteError.

    Raises InputError for models of different layers, widths or vocabularies.
    """
    _require_alike(a, b)
    ids = checked(a, tokens)
    comparing = _Comparing(a, len(ids))
    caches = a.new_cache(), b.new_cache()
    points = comparing.points
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        recorder = Recorder(*points)
        expected = a(part, cache=caches[0], trace=recorder)
        comparing.begin(recorder, slice(start, start + len(part)))
        found = b(part, cache=caches[1], trace=Watcher(comparing.see, *points))
        comparing.logits(expected, found)
        if on_prefill is not None:
            on_prefill(start + len(part), len(ids))
    return comparing.result(ids)


class _Comparing:
    """Takes in B's values one by one and compares each with A's of the same name."""

    def __init__(self, model: Laguna, tokens: int) -> None:
        layers = model.config.layers
        self._layers = layers
        self._errors = {"model.embed_tokens": np.zeros(tokens)}
        for layer in layers:
            at = f"model.layers.{layer.index}"
            self._errors |= {f"{at}{part}": np.zeros(tokens) for part in ("", ".self_attn", ".mlp")}
        self._flips = {
            f"model.layers.{layer.index}.mlp.topk_ids": np.zeros(tokens, np.int64)
            for layer in layers
            if layer.mlp == "sparse"
        }
        self._kl, self._same = np.zeros(tokens), np.zeros(tokens, dtype=bool)
        self._rows = slice(0)
        self._expected = Recorder()

    @property
    def points(self) -> tuple[str, ...]:
        """Names of what is compared."""
        return (*self._errors, *self._flips)

    def begin(self, expected: Recorder, rows: slice) -> None:
        self._expected, self._rows = expected, rows

    def see(self, name: str, found: Array) -> None:
        if name in self._errors:
            self._errors[name][self._rows] = relative_error(self._expected[name], found)
        elif name in self._flips:
            self._flips[name][self._rows] = flipped(self._expected[name], found)

    def logits(self, expected: Array, found: Array) -> None:
        for start in range(0, len(expected), ROWS):
            a, b = expected[start : start + ROWS], found[start : start + ROWS]
            rows = slice(self._rows.start + start, self._rows.start + start + len(a))
            # Rounding can leave a sum of zeros a little below zero.
            self._kl[rows] = np.maximum(kl_divergence(a, b), 0.0)
            self._same[rows] = a.argmax(axis=1) == b.argmax(axis=1)

    def result(self, ids: Array) -> DiffView:
        layers = []
        for layer in self._layers:
            at = f"model.layers.{layer.index}"
            layers.append(
                LayerDiff(
                    layer=layer,
                    residual=self._errors[at],
                    attention=self._errors[f"{at}.self_attn"],
                    mlp=self._errors[f"{at}.mlp"],
                    flipped=self._flips.get(f"{at}.mlp.topk_ids"),
                )
            )
        embedding = self._errors["model.embed_tokens"]
        return DiffView(ids, embedding, tuple(layers), self._kl, self._same)


def relative_error(expected: Array, found: Array) -> Array:
    """[T, …] twice -> [T]: norm of the difference over the norm of ``expected``.

    Zero where both are zero, infinite where only ``expected`` is.
    """
    wide = expected.astype(np.float64).reshape(len(expected), -1)
    difference = np.linalg.norm(found.astype(np.float64).reshape(wide.shape) - wide, axis=1)
    size = np.linalg.norm(wide, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / size)


def flipped(expected: Array, found: Array) -> Array:
    """ids [T, K] and [T, K'] -> [T]: how many of ``expected`` are not in ``found``."""
    missing = (expected[:, :, None] != found[:, None, :]).all(axis=2)
    return np.asarray(missing.sum(axis=1))


def _require_alike(a: Laguna, b: Laguna) -> None:
    for what in ("num_hidden_layers", "hidden_size", "vocab_size"):
        mine, its = getattr(a.config, what), getattr(b.config, what)
        if mine != its:
            raise InputError("the two models differ", key=what, expected=mine, found=its)
