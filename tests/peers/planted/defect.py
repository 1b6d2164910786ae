"""A defect written into a Transformers model by hand, and the few ways in which it is written.

None of it knows the kit's catalogue of faults but by name: config values, attributes, weights,
hooks and methods of Transformers' own classes are changed, and put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers.models.laguna.modeling_laguna import LagunaAttention, LagunaSparseMoeBlock

FULL, SLIDING = "full_attention", "sliding_attention"

Plant = Callable[[Any, ExitStack], None]
"""Changes a loaded ``LagunaForCausalLM``; the stack undoes it."""


@dataclass(frozen=True)
class Defect:
    """One mistake of a port."""

    plant: Plant
    faults: tuple[str, ...]
    """Faults of the catalogue that mean it. Empty: the catalogue has none."""
    point: str = ""
    """Where it first shows, of one that has no name."""
    prompts: tuple[str, ...] = ("short",)
    """Of ``diagnosis.prompts.drawn``."""
    cache: str = "float"
    """``float`` or ``fp8``."""
    hidden: str = ""
    """Why logits cannot show it, where they cannot."""

    @property
    def name(self) -> str:
        """As a report of the tests prints it."""
        return self.plant.__name__

    @property
    def description(self) -> str:
        """The first line of its function's docstring."""
        return (self.plant.__doc__ or "").partition("\n")[0]


@contextmanager
def planted(model: Any, defect: Defect) -> Iterator[None]:
    """The model with the defect, inside the block."""
    with ExitStack() as undo:
        defect.plant(model, undo)
        yield


def put(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Another value, method or module for an attribute."""
    undo.enter_context(patch.object(owner, name, value))


def overwrite(undo: ExitStack, tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Other numbers in a tensor's own memory."""
    before = tensor.detach().clone()
    tensor.data.copy_(value.detach().clone())
    undo.callback(tensor.data.copy_, before)


def before(undo: ExitStack, module: torch.nn.Module, hook: Callable[..., Any]) -> None:
    """``hook(module, args)`` gives the arguments that the module then gets, or None."""
    undo.callback(module.register_forward_pre_hook(hook).remove)


def after(undo: ExitStack, module: torch.nn.Module, hook: Callable[..., Any]) -> None:
    """``hook(module, args, output)`` gives what the module then returns."""
    undo.callback(module.register_forward_hook(hook).remove)


def attentions(model: Any, kind: str | None = None) -> list[LagunaAttention]:
    """Of the layers of one kind, or of all."""
    return [
        layer.self_attn
        for layer, of in zip(model.model.layers, model.config.layer_types, strict=True)
        if kind in (None, of)
    ]


def sparse_blocks(model: Any) -> list[LagunaSparseMoeBlock]:
    """Of every layer with experts."""
    return [m for m in model.modules() if isinstance(m, LagunaSparseMoeBlock)]


def remembered(undo: ExitStack, module: torch.nn.Module) -> list[torch.Tensor]:
    """A list whose one element is what the module was last given."""
    last: list[torch.Tensor] = []

    def remember(_: torch.nn.Module, args: Any) -> None:
        last[:] = args[:1]

    before(undo, module, remember)
    return last
