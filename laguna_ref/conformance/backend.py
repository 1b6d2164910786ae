"""What the kit asks of a backend: a name, what it can do, and logits for token ids.

A backend is any object with the three members of ``Backend``. All else is optional and told by
``capabilities``; a check that needs what a backend cannot do is *not applicable*, never passed.

==================  ==============================================================================
capability          member
==================  ==============================================================================
``trace``           ``trace(tokens, points) -> {point: [T, ...]}``: the points it has of those asked
                    for, ``lm_head`` among them; ids and weights of experts where it knows them
``forced_routing``  ``logits`` and ``trace`` take ``routing={layer: (ids [T, K], weights or None)}``
``positions``       ``logits`` and ``trace`` take ``positions=[T]``: angles of RoPE, not places
``chunks``          ``prefill(tokens) -> (state, logits [T, V])`` and
                    ``decode(state, tokens) -> (state, logits [t, V])``, any number of tokens each
``batch``           ``batch(sequences) -> [logits [T, V], ...]``: ragged, all in one run
``padding``         ``batch`` pads on the right and masks what it padded
``packed``          it reads INT4 and INT8 groups as they lie in the file
``exact``           its results are the same bits however a prompt is cut or batched
==================  ==============================================================================

Attributes that a report shows where they exist: ``version``; ``config``, the effective value of
every config key; ``precision``, a name of ``precision.PRESETS`` (default: ``float32``).

Attributes that decide how it is judged, where they exist:

=====================  ===========================================================================
``oracle``             options of ``laguna_ref.load`` (``dequant``, ``kv_cache``): the model so
                       loaded computes the function that the backend was given to compute
``logits_kind``        ``logprobs``: its logits are log-probabilities in nats, and NaN is a value
                       that it does not show. Without it NaN is a divergence.
``serves_one_model``   it has the one model it serves loaded, and cannot open another
``recorded``           it answers for the prompts that were recorded and for no other
=====================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from laguna_ref.conformance.precision import Precision, precision_by_name, stated_precision
from laguna_ref.errors import InputError
from laguna_ref.numerics import Array

CAPABILITIES = (
    "trace", "forced_routing", "positions", "chunks", "batch", "padding", "packed", "exact",
)  # fmt: skip
DEFAULT_PRECISION = "float32"


class Backend(Protocol):
    """An implementation of Laguna with a checkpoint loaded."""

    @property
    def name(self) -> str:
        """What a report calls it."""

    @property
    def capabilities(self) -> Collection[str]:
        """Some of ``CAPABILITIES``."""

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits of the token after each of ``tokens``, [T, V].

        NaN where a value is not known, of a backend whose ``logits_kind`` is ``logprobs``: an
        endpoint shows only the likeliest tokens.
        """


Opener = Callable[[Path], Backend]
"""Opens a checkpoint folder in the published layout. Laws draw models, so they need one."""


class BackendError(InputError):
    """A backend that cannot be had, or that failed: what was asked of it, and what it said."""


class BackendDiedError(BackendError):
    """A backend that will not answer again, whatever it is asked: a server that went away.

    known: what it had answered of the prompt, log-probabilities [T, V] with NaN for the rest.
    """

    def __init__(self, message: str, *, known: Array | None = None, **parts: Any) -> None:
        super().__init__(message, **parts)
        self.known = known


def can(backend: Backend, capability: str) -> bool:
    """Whether the backend declares it; raises BackendError for a capability nobody knows."""
    unknown = sorted(set(backend.capabilities) - set(CAPABILITIES) - {"logits"})
    if unknown:
        raise BackendError(
            f"{backend.name}: unknown capability", expected=", ".join(CAPABILITIES),
            found=unknown[0],
        )  # fmt: skip
    return capability in backend.capabilities


def precision_of(backend: Backend) -> str:
    """The declared precision."""
    return str(getattr(backend, "precision", DEFAULT_PRECISION))


def declared_precision(backend: Backend) -> Precision:
    """The same with its parts; raises InputError for one that nobody knows."""
    return stated_precision(precision_of(backend)) or precision_by_name(DEFAULT_PRECISION)


def oracle_options(backend: Backend) -> dict[str, Any]:
    """Options of ``laguna_ref.load`` for the model that the backend is judged by."""
    return dict(getattr(backend, "oracle", {}))


def describe(backend: Backend) -> dict[str, Any]:
    """``backend`` of a report: name, version, effective config."""
    config: Mapping[str, Any] | None = getattr(backend, "config", None)
    return {
        "name": backend.name,
        "version": getattr(backend, "version", None),
        "config": None if config is None else dict(config),
    }


def why_no_laws(backend: Backend) -> str | None:
    """Why no law at all can be put to a backend, or None."""
    if getattr(backend, "recorded", False):
        return "it answers for recorded prompts alone"
    return None
