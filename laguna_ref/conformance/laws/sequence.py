"""Laws of sequences: what a token may depend on, and that cutting and batching do not show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from laguna_ref.conformance.laws.case import Case
from laguna_ref.conformance.laws.example import Config, Example
from laguna_ref.conformance.laws.law import Claim, Law, Moves, Open, Same, Setting
from laguna_ref.conformance.strategies import MAX_TOKENS, configs, examples


def causality(case: Case, opened: Open) -> Iterator[Claim]:
    """A token's logits depend on it and on those before it, on nothing after it.

    Catches: a missing or shifted mask, keys of the whole chunk, padding that is attended to.
    """
    backend, tokens, cut = opened(case.model()), case.tokens, case.chosen["cut"]
    whole = backend.logits(tokens)
    others = tokens[:cut] + [tokens[0]] * (len(tokens) - cut)
    yield Same("other tokens after", backend.logits(others)[:cut], whole[:cut])
    yield Same("no tokens after", backend.logits(tokens[:cut]), whole[:cut])


def repeatable(case: Case, opened: Open) -> Iterator[Claim]:
    """The same prompt gives the same logits, whatever was asked in between.

    Catches: a cache that is not emptied, scratch memory read before it is written, a race.
    """
    backend, tokens = opened(case.model()), case.tokens
    first = np.array(backend.logits(tokens))
    backend.logits(tokens[::-1])
    yield Same("the same prompt again", backend.logits(tokens), first)


def chunks(case: Case, opened: Open) -> Iterator[Claim]:
    """Prefill, chunked prefill and decoding token by token give the same logits.

    Catches: positions that start again, a ring buffer one slot off, keys overwritten before the
    chunk's own first queries have seen them, a mask that forgets what is cached.
    """
    backend, tokens, cut = opened(case.model()), case.tokens, case.chosen["cut"]
    whole = backend.logits(tokens)
    state, first = _prefill(backend, tokens[:cut])
    _, rest = _decode(backend, state, tokens[cut:])
    yield Same("two chunks", np.concatenate([first, rest]), whole)
    state, first = _prefill(backend, tokens[:1])
    parts = [first]
    for token in tokens[1:]:
        state, one = _decode(backend, state, [token])
        parts.append(one)
    yield Same("token by token", np.concatenate(parts), whole)


def batched(case: Case, opened: Open) -> Iterator[Claim]:
    """A sequence has the same logits alone, in a batch, and at another place of the batch.

    Catches: caches mixed up between sequences, positions of the batch instead of the sequence,
    sums that change with the batch (of an exact backend).
    """
    backend: Any = opened(case.model())
    tokens, cut = case.tokens, case.chosen["cut"]
    sequences = [tokens, tokens[cut:], tokens[:cut]]
    alone = [np.array(backend.logits(sequence)) for sequence in sequences]
    for what, order in (("in a batch", (0, 1, 2)), ("at another place", (2, 0, 1))):
        together = backend.batch([sequences[at] for at in order])
        found = np.concatenate([together[order.index(at)] for at in range(3)])
        yield Same(what, found, np.concatenate(alone))


def padding(case: Case, opened: Open) -> Iterator[Claim]:
    """How far a sequence is padded on the right has no influence on it.

    Catches: padding that is attended to or counted, logits taken from the padded end.
    """
    backend: Any = opened(case.model())
    tokens, cut = case.tokens, case.chosen["cut"]
    short = tokens[:cut]
    alone = np.array(backend.logits(short))
    for length in (len(tokens), 2 * len(tokens)):
        longer = (tokens * 2)[:length]
        yield Same(f"padded to {length} tokens", backend.batch([short, longer])[0], alone)


def sliding_reach(case: Case, opened: Open) -> Iterator[Claim]:
    """Through L sliding layers of window W a token reaches L * (W - 1) tokens on, no further.

    Catches: a window of W - 1 or W + 1 keys (511 and 513 in place of 512), a window that full
    layers alone have, a ring read one slot off.
    """
    backend, tokens = opened(case.model()), case.tokens
    window, first = case.config["sliding_window"], case.chosen["first"]
    last = first + case.config["num_hidden_layers"] * (window - 1)
    changed = list(tokens)
    changed[first] = (tokens[first] + 1) % case.config["vocab_size"]
    before, after = backend.logits(tokens), backend.logits(changed)
    yield Same("beyond the reach", after[last + 1 :], before[last + 1 :])
    yield Moves("the last token within reach", after[last : last + 1], before[last : last + 1])


def _prefill(backend: Any, tokens: list[int]) -> Any:
    return backend.prefill(tokens)


def _decode(backend: Any, state: Any, tokens: list[int]) -> Any:
    return backend.decode(state, tokens)


def _cut(draw: st.DrawFn, config: Config, count: int) -> dict[str, int]:
    return {"cut": draw(st.integers(1, count - 1))}


def _cut_prompts(setting: Setting) -> st.SearchStrategy[Example]:
    return examples(setting, configs, tokens=(2, MAX_TOKENS), chosen=_cut)


def _prompts(setting: Setting) -> st.SearchStrategy[Example]:
    return examples(setting, configs)


@st.composite
def _reaching(draw: st.DrawFn, setting: Setting) -> Example:
    """A prompt that goes on for a few tokens beyond the reach of one of its first."""
    config = draw(configs(setting, attention=("sliding_attention",)))
    reach = config["num_hidden_layers"] * (config["sliding_window"] - 1)
    first = draw(st.integers(0, 2))
    count = first + reach + 1 + draw(st.integers(1, 3))
    tokens = draw(st.lists(st.integers(0, config["vocab_size"] - 1), min_size=count,
                           max_size=count))  # fmt: skip
    seed = draw(st.integers(0, 2**20))
    return Example(config, seed, ("flat attention",), tuple(tokens), {"first": first})


LAWS = (
    Law("causality", causality, _cut_prompts, exact=True, given=True),
    Law("repeatable", repeatable, _prompts, exact=True, given=True),
    Law("chunks", chunks, _cut_prompts, exact=True, needs=("chunks",), given=True),
    Law("batched", batched, _cut_prompts, exact=True, needs=("batch",), given=True),
    Law("padding", padding, _cut_prompts, exact=True, needs=("batch", "padding"), given=True),
    Law("sliding-reach", sliding_reach, _reaching, exact=True),
)
