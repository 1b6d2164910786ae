"""The second training: from a published folder on, conversations mixed with Python text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import laguna_ref.checkpoint
from laguna_ref.checkpoint import PackedIntWeight
from laguna_tiny.dialogues import LENGTH
from laguna_tiny.network import Parameters, initial_parameters
from laguna_tiny.training import Plan, Stream

NOT_LEARNED = -100  # cross_entropy's name for a target that does not count


@dataclass(frozen=True)
class ConversePlan(Plan):
    """Everything that decides the weights, given those at the start.

    Learning rates are `peak` times the first training's. Every step sees weights as exported.
    """

    seed: int = 2
    steps: int = 900
    lengths: tuple[tuple[float, int], ...] = ((0.0, LENGTH),)
    hold: float = 0.2
    quantised_from: float = 0.0
    bias_rate: float = 5e-4
    peak: float = 0.4
    dialogue_rows: int = 6  # of the eight in a batch, the others are Python

    def rate(self, step: int) -> float:
        """All learning rates' common factor."""
        return self.peak * super().rate(step)


@dataclass(frozen=True)
class SettlePlan(ConversePlan):
    """The last part: from half-way between the two trainings' weights, gently, half Python.

    The mean keeps nearly all that the first training knows of Python and half of what the second
    knows of conversations; a few steps at a low rate bring the other half back.
    """

    seed: int = 3
    steps: int = 300
    peak: float = 0.12
    dialogue_rows: int = 4


def mean(one: Parameters, other: Parameters) -> Parameters:
    """Half-way between two sets of weights."""
    return {name: (value + other[name]) / 2 for name, value in one.items()}


def unrounded(weight: PackedIntWeight) -> np.ndarray:
    """Float values that round to the stored codes again.

    The greatest magnitude of a group is 7.5 scales (127.5 with eight bits) before rounding, and
    its code is -8 or, cut off, 7: the scale of plain dequantised values would be another one.
    """
    values = weight.rows()
    limit = 2 ** (weight.bits - 1)
    groups = values.reshape(*weight.scale.shape, weight.group_size)
    scale = weight.scale.astype(np.float32)[:, :, None]
    lowest = groups == -limit * scale
    greatest = (groups == (limit - 1) * scale) & ~lowest.any(axis=2, keepdims=True)
    groups = np.where(lowest, (0.5 - limit) * scale, groups)
    groups = np.where(greatest, (limit - 0.5) * scale, groups)
    return groups.reshape(values.shape)


def published_parameters(folder: Path, config: dict[str, Any]) -> Parameters:
    """A folder's stored values under the training names, router biases included."""
    stored = laguna_ref.checkpoint.open(folder)

    def expert(module: str) -> np.ndarray:
        weight = stored.weight(module)
        if not isinstance(weight, PackedIntWeight):
            raise SystemExit(f"{folder}: {module} is not packed integers but {weight.format}")
        return unrounded(weight)

    parameters = initial_parameters(config, 0)
    for name, value in parameters.items():
        prefix, _, last = name.rpartition(".")
        if last not in ("gate_up_proj", "down_proj"):
            array = stored.tensor(name).astype(np.float32)
        else:
            parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
            array = np.stack(
                [
                    np.concatenate([expert(f"{prefix}.{number}.{part}") for part in parts])
                    for number in range(len(value))
                ]
            )
        value.copy_(torch.from_numpy(array))
    return parameters


class Mixture:
    """Batches of rows of whole conversations and rows of Python text."""

    def __init__(self, work: Path, plan: ConversePlan) -> None:
        data = np.load(work / "dialogues.npz")
        self.ids, self.flags = data["ids"].astype(np.int64), data["flags"]
        self.python, self.plan = Stream(work, plan.seed), plan
        self.python_rows = plan.batch_tokens // LENGTH - plan.dialogue_rows
        self._order: dict[int, np.ndarray] = {}

    def _dialogue(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of the number-th row, counted through epochs of another order each."""
        epoch, offset = divmod(number, len(self.ids))
        if epoch not in self._order:
            rng = np.random.default_rng([self.plan.seed, epoch])
            self._order[epoch] = rng.permutation(len(self.ids))
        row = self._order[epoch][offset]
        ids, flags = self.ids[row], self.flags[row]
        return ids[:-1], np.where(flags[1:], ids[1:], NOT_LEARNED)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [B, T]; of a conversation only the assistant's own tokens count."""
        rows = [
            self._dialogue(step * self.plan.dialogue_rows + number)
            for number in range(self.plan.dialogue_rows)
        ]
        for number in range(self.python_rows):
            start = (number * self.plan.steps + step) * LENGTH
            tokens = self.python.take(start, LENGTH + 1)
            rows.append((tokens[:-1], tokens[1:]))
        inputs, targets = zip(*rows, strict=True)
        return torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets))
