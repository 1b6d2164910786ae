"""One token's way through the model: what each part adds to its residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike

from laguna_ref.config import LayerSpec
from laguna_ref.errors import InputError
from laguna_ref.explain.lens import Guess, guesses, lens, log_probabilities
from laguna_ref.explain.probabilities import of_last_query
from laguna_ref.explain.routing_view import Choice, choices
from laguna_ref.explain.running import OnPrefill, checked, in_chunks, watching_attention
from laguna_ref.kv_cache import KVSlice
from laguna_ref.model import Laguna
from laguna_ref.numerics import Array
from laguna_ref.trace import Recorder


@dataclass(frozen=True)
class LayerStep:
    """What one layer does to the token. Norms are Euclidean, of vectors [D]."""

    layer: LayerSpec
    before: float
    """Norm of the residual stream that enters the layer."""
    contributions: dict[str, Array]
    """What is added, in order: ``attention``, then ``shared_experts`` and ``routed_experts``
    (times the scaling factor), or ``dense_mlp``; [D] each."""
    after: float
    """Norm of the residual stream that leaves the layer."""
    rounding: float
    """Norm of what leaves less what enters and all contributions: what rounding took or gave."""
    looked_at: Array
    """[S] float64: attention probability of each position, averaged over the heads; recomputed
    (see ``laguna_ref.explain.probabilities``). S is the token's own position plus 1."""
    head_looked_at: Array
    """[H] int64: the position each head looked at most."""
    head_probability: Array
    """[H] float64: and how much."""
    gate: Array
    """[H] float64: what each head's output is multiplied by; the mean where the gate is one an
    element."""
    choice: Choice | None
    """The routed experts; None in a dense layer."""
    lens: tuple[Guess, ...]
    """What the model would say if it stopped after this layer."""
    answer_logprob: float
    """Of the token that the whole model finds likeliest, if it stopped here; nats."""

    @property
    def norms(self) -> dict[str, float]:
        """Norm of each contribution."""
        return {name: norm(vector) for name, vector in self.contributions.items()}

    def most_looked_at(self, count: int) -> list[tuple[int, float]]:
        """(position, mean probability), greatest first."""
        order = np.argsort(-self.looked_at, kind="stable")[:count]
        return [(int(i), float(self.looked_at[i])) for i in order]


@dataclass(frozen=True)
class TokenView:
    """One token from embedding to logits."""

    tokens: Array
    """int64 [position + 1]: what the token could see, itself last."""
    position: int
    embedding: Array
    """[D]"""
    embedding_lens: tuple[Guess, ...]
    """What the model would say without any layer."""
    embedding_answer_logprob: float
    """As ``LayerStep.answer_logprob``, without any layer."""
    layers: tuple[LayerStep, ...]
    logits: Array
    """[V]"""
    guesses: tuple[Guess, ...]
    """The likeliest next tokens."""


def token(
    model: Laguna,
    tokens: ArrayLike,
    position: int = -1,
    *,
    top: int = 5,
    on_prefill: OnPrefill | None = None,
) -> TokenView:
    """Follows the token at ``position`` (negative: from the end) from embedding to logits.

    tokens: int [T]; what comes after ``position`` cannot be seen by it, and is not computed.
    top: how many tokens each logit lens keeps.

    What comes before is prefilled, then the token is computed by itself with everything traced,
    so memory does not grow with the prompt beyond its cache. Raises InputError.
    """
    ids = checked(model, tokens)
    at = position_in(ids, position)
    seen: dict[int, Array] = {}

    def see(layer: LayerSpec, q: Array, kv: KVSlice) -> None:
        seen[layer.index] = of_last_query(q, kv, layer.window, model.numerics)

    cache = model.new_cache()
    for _ in in_chunks(model, ids[:at], cache=cache, on_prefill=on_prefill):
        pass
    recorder = Recorder()
    logits = watching_attention(model, see)([ids[at]], cache=cache, trace=recorder)[0]
    streams = [recorder["model.embed_tokens"]]
    streams += [recorder[f"model.layers.{layer.index}"] for layer in model.config.layers]
    looks = lens(model, np.concatenate(streams))
    answer = int(np.argmax(logits))
    steps = tuple(
        _step(model, layer, recorder, streams[i], seen[i], looks[i + 1], answer, top)
        for i, layer in enumerate(model.config.layers)
    )
    return TokenView(
        tokens=ids[: at + 1],
        position=at,
        embedding=streams[0][0],
        embedding_lens=guesses(looks[0], top),
        embedding_answer_logprob=float(log_probabilities(looks[0])[answer]),
        layers=steps,
        logits=logits,
        guesses=guesses(logits, top),
    )


def position_in(tokens: Array, position: int) -> int:
    """``position`` in tokens [T], counted from 0; raises InputError for one that is not there."""
    count = len(tokens)
    given: object = position
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if not whole or not -count <= position < count:
        raise InputError("no such position", expected=f"{-count} to {count - 1}", found=position)
    return int(position) % count


def norm(vector: Array) -> float:
    """Euclidean norm of a vector [N], in float64."""
    return float(np.linalg.norm(vector.astype(np.float64)))


def _step(
    model: Laguna,
    layer: LayerSpec,
    recorder: Recorder,
    before: Array,
    looked_at: Array,
    logits: Array,
    answer: int,
    top: int,
) -> LayerStep:
    at = f"model.layers.{layer.index}"
    added = _contributions(model, layer, recorder)
    after = recorder[at][0]
    exact = before[0].astype(np.float64) + sum(x.astype(np.float64) for x in added.values())
    gate = recorder[f"{at}.self_attn.gate"][0].reshape(layer.num_heads, -1)
    choice = None
    if layer.mlp == "sparse":
        (choice,) = choices(model, layer.index, recorder, [0])
    return LayerStep(
        layer=layer,
        before=norm(before[0]),
        contributions=added,
        after=norm(after),
        rounding=norm(after.astype(np.float64) - exact),
        looked_at=looked_at.mean(axis=0),
        head_looked_at=looked_at.argmax(axis=1),
        head_probability=looked_at.max(axis=1),
        gate=gate.astype(np.float64).mean(axis=1),
        choice=choice,
        lens=guesses(logits, top),
        answer_logprob=float(log_probabilities(logits)[answer]),
    )


def _contributions(model: Laguna, layer: LayerSpec, recorder: Recorder) -> dict[str, Array]:
    at = f"model.layers.{layer.index}"
    added = {"attention": recorder[f"{at}.self_attn"][0]}
    if layer.mlp == "dense":
        return added | {"dense_mlp": recorder[f"{at}.mlp"][0]}
    n = model.numerics
    factor = n.dtype.type(model.config.moe_routed_scaling_factor)
    routed = n.round_at("experts.scaled", recorder[f"{at}.mlp.experts"][0] * factor)
    return added | {
        "shared_experts": recorder[f"{at}.mlp.shared_experts"][0],
        "routed_experts": routed,
    }
