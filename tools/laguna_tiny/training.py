"""The training run: seeded, scheduled by steps, resumable from its last checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laguna_tiny import quantise
from laguna_tiny.corpus import SOURCES
from laguna_tiny.network import Network, Parameters
from laguna_tiny.optimiser import Optimiser, Rates


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights."""

    seed: int = 1
    steps: int = 4200
    batch_tokens: int = 8192
    lengths: tuple[tuple[float, int], ...] = ((0.0, 256), (0.35, 512), (0.7, 1024), (0.88, 2048))
    warm_up: int = 40
    hold: float = 0.3  # share of steps at the peak rate, then linearly to nothing
    quantised_from: float = 0.8  # share of steps after which the forward pass sees rounded weights
    bias_rate: float = 1e-3
    bias_hold: float = 0.5
    rates: Rates = field(default_factory=Rates)

    def phase(self, step: int) -> tuple[int, int, int]:
        """First step, step after the last, and tokens a sequence of the phase `step` is in."""
        firsts = [round(start * self.steps) for start, _ in self.lengths] + [self.steps]
        number = max(i for i in range(len(self.lengths)) if firsts[i] <= step)
        return firsts[number], firsts[number + 1], self.lengths[number][1]

    def rate(self, step: int) -> float:
        """All learning rates' common factor."""
        falling = (self.steps - step) / (self.steps * (1 - self.hold))
        return min(1.0, (step + 1) / self.warm_up, falling)

    def router_bias_rate(self, step: int) -> float:
        """Falls to exactly zero, so that the biases are final well before the weights are."""
        done = step / self.steps
        return self.bias_rate * min(1.0, max(0.0, (0.95 - done) / (0.95 - self.bias_hold)))


class Stream:
    """The corpus as one endless row of tokens, documents shuffled anew in every epoch."""

    def __init__(self, work: Path, seed: int) -> None:
        data = np.load(work / "train.npz")
        self.ids, self.starts, self.seed = data["ids"], data["starts"], seed
        repeats = {source.name: source.repeats for source in SOURCES}
        times = np.array([repeats[str(name)] for name in data["names"]])[data["source"]]
        self.documents = np.repeat(np.arange(len(times)), times)
        lengths = np.diff(self.starts)
        self.epoch_tokens = int(lengths[self.documents].sum())
        self._epochs: dict[int, np.ndarray] = {}

    def _epoch_row(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.documents)
            parts = [self.ids[self.starts[d] : self.starts[d + 1]] for d in order]
            self._epochs[epoch] = np.concatenate(parts)
        return self._epochs[epoch]

    def take(self, position: int, count: int) -> np.ndarray:
        """`count` tokens from an absolute position on."""
        parts = []
        while count:
            epoch, offset = divmod(position, self.epoch_tokens)
            part = self._epoch_row(epoch)[offset : offset + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts).astype(np.int64)


def batch(stream: Stream, step: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, T]. Each of the B rows reads its own part of the stream from front
    to back, so that a batch mixes B documents."""
    first, end, length = plan.phase(step)
    rows = plan.batch_tokens // length
    starts = [
        first * plan.batch_tokens + row * (end - first) * length + (step - first) * length
        for row in range(rows)
    ]
    tokens = torch.from_numpy(np.stack([stream.take(start, length + 1) for start in starts]))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def balance(parameters: Parameters, loads: list[Tensor], rate: float) -> None:
    """Auxiliary-loss-free balancing: an expert with too little work becomes easier to choose."""
    names = [name for name in parameters if name.endswith("e_score_correction_bias")]
    for name, load in zip(names, loads, strict=True):
        load = load.float()
        parameters[name] += rate * torch.sign(load.mean() - load)


def save(path: Path, parameters: Parameters, optimiser: Optimiser, step: int, plan: Plan) -> None:
    """Replaces the file whole, so that an interruption leaves the one before."""
    state = {
        "parameters": {name: value.detach() for name, value in parameters.items()},
        "optimiser": optimiser.state(),
        "step": step,
        "plan": asdict(plan),
    }
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def restore(path: Path, parameters: Parameters, optimiser: Optimiser, plan: Plan) -> int:
    """Puts back what was saved, and returns the number of steps that it has seen."""
    state = torch.load(path)
    if state["plan"] != asdict(plan):
        raise SystemExit(f"{path} belongs to another plan: {state['plan']}")
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(state["parameters"][name])
    optimiser.restore(state["optimiser"])
    return int(state["step"])


def load_checkpoint(path: Path) -> Parameters:
    """The weights."""
    parameters: Parameters = torch.load(path)["parameters"]
    return parameters


def train(
    config: dict[str, Any],
    plan: Plan,
    parameters: Parameters,
    batch_of: Callable[[int], tuple[Tensor, Tensor]],
    checkpoint: Path,
    resume: bool = False,
    compiled: bool = True,
    stop_after: int | None = None,
    save_every: int = 250,
    report_every: int = 20,
) -> Parameters:
    """Runs the plan to its end (or for `stop_after` steps) from `parameters` on, and returns the
    float weights. `batch_of(step)` gives inputs and targets; a target of -100 is not learned."""
    for name, value in parameters.items():
        value.requires_grad_(not name.endswith("e_score_correction_bias"))
    optimiser = Optimiser(parameters, plan.rates)
    log = checkpoint.with_suffix(".jsonl")
    first, seconds = 0, 0.0
    if resume and checkpoint.exists():
        first = restore(checkpoint, parameters, optimiser, plan)
    networks: dict[int, Network] = {}
    last = min(plan.steps, stop_after or plan.steps)
    print(f"the plan: {plan}", flush=True)
    loss_sum, count, began = torch.zeros(()), 0, time.perf_counter()
    for step in range(first, last):
        length = plan.phase(step)[2]
        if length not in networks:
            torch._dynamo.reset()  # its limit of eight variants of a function is for one length
            networks = {length: Network(config, length, torch.bfloat16, compiled)}
        tokens, targets = batch_of(step)
        late = step >= plan.quantised_from * plan.steps
        weights = quantise.as_exported(parameters) if late else parameters
        loss, loads = networks[length].loss(weights, tokens, targets)
        loss.backward()
        optimiser.step(plan.rate(step))
        balance(parameters, loads, plan.router_bias_rate(step))
        loss_sum, count = loss_sum + loss.detach(), count + 1
        if (step + 1) % report_every == 0 or step + 1 == last:
            seconds, began = time.perf_counter() - began, time.perf_counter()
            worst = max(float(load.max() / load.float().mean()) for load in loads)
            entry = {
                "step": step + 1,
                "loss": round(float(loss_sum) / count, 4),
                "tokens_per_second": round(count * plan.batch_tokens / seconds),
                "length": length,
                "rate": round(plan.rate(step), 4),
                "greatest_load": round(worst, 2),
            }
            with log.open("a") as out:
                out.write(json.dumps(entry) + "\n")
            print(entry, flush=True)
            if not np.isfinite(entry["loss"]):
                raise SystemExit("the loss is no longer a number")
            loss_sum, count = torch.zeros(()), 0
        if (step + 1) % save_every == 0 or step + 1 == last:
            save(checkpoint, parameters, optimiser, step + 1, plan)
    return parameters
