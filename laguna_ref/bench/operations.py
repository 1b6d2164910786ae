"""Where the time of a run goes: an engine that times each of its operations."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from laguna_ref.engines import Engine, with_wrapped
from laguna_ref.model import Laguna

Clock = Callable[[], float]
OTHER = "other"
"""Everything between operations: appending to the cache, checks, Python itself."""
_OPERATIONS = (
    "embed", "rms_norm", "linear", "rope_tables", "apply_rope", "attention", "gate_values",
    "apply_gate", "mlp", "route", "experts", "combine", "add",
)  # fmt: skip


def timing_engine(
    engine: Engine, seconds: dict[str, float], clock: Clock = time.perf_counter
) -> Engine:
    """The same engine; what each operation takes is added to ``seconds`` under its name."""

    def watched(name: str) -> Callable[..., Any]:
        function = getattr(engine, name)

        def call(*args: Any) -> Any:
            start = clock()
            result = function(*args)
            seconds[_label(name, args)] += clock() - start
            return result

        return call

    return with_wrapped(engine, **{name: watched(name) for name in _OPERATIONS})


def _label(name: str, args: tuple[Any, ...]) -> str:
    """A product with a weight goes by the weight's name, an MLP by whose it is."""
    if name == "linear":
        module = str(args[1].name).rpartition(".")[2]
        return "lm_head" if module == "embed_tokens" else module  # tied
    if name == "mlp":
        return "shared_experts" if "shared_expert" in args[1].gate_proj.name else "dense_mlp"
    if name == "attention":
        return "attention" if args[2] is None else "attention (sliding)"
    return name


@contextmanager
def watching(model: Laguna) -> Iterator[dict[str, float]]:
    """While inside, the model's operations are timed into the dictionary it yields."""
    seconds: dict[str, float] = defaultdict(float)
    before = model.engine
    model.engine = timing_engine(before, seconds)
    try:
        yield seconds
    finally:
        model.engine = before


def split(
    model: Laguna, run: Callable[[], object], repeats: int, after: Callable[[], object]
) -> dict[str, float]:
    """Seconds of one run by operation, the mean of some repeats, greatest first."""
    total = 0.0
    with watching(model) as seconds:
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            total += time.perf_counter() - start
            after()
    parts = {name: value / repeats for name, value in seconds.items()}
    parts[OTHER] = total / repeats - sum(parts.values())
    return dict(sorted(parts.items(), key=lambda part: -part[1]))
