"""Requests for a tool that nobody offered, whatever else is offered."""

from __future__ import annotations

import random

from laguna_tiny.dialogue.exchange import Exchange, answer, pick, user
from laguna_tiny.dialogue.shell import word

ABSENT = (
    "weather", "browser", "search", "email", "calendar", "database", "translator", "camera",
    "music", "maps", "image", "printer",
)  # fmt: skip
ABSENT_ASKED = (
    "Use the {t} tool.", "Call the {t} tool for {w}.", "Please use the {t} tool to find {w}.",
    "Ask the {t} tool about {w}", "Can you call {t}?", "Use {t} and tell me about {w}.",
)  # fmt: skip


def exchange(rng: random.Random) -> Exchange:
    """Politely refused, the tool named."""
    tool, asked, about = pick(rng, ABSENT), pick(rng, ABSENT_ASKED), word(rng)
    said = pick(
        rng, ("I have no {t} tool, so I cannot do that.", "Sorry, there is no {t} tool here.")
    )
    thought = pick(rng, ("There is no {t} tool.", "no such tool", "I have no {t} tool."))
    text = asked.format(t=tool, w=about)
    return Exchange(
        f"absent/{asked}/{tool}", (user(text), answer(thought.format(t=tool), said.format(t=tool)))
    )
