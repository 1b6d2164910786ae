"""``"laguna": {"trace": true}``: each token with what it was chosen from and who computed it.

Every chunk of a stream that brings a token has, in its choice, ::

    "laguna": {"tokens": [{
        "id": 381, "text": "def", "probability": 0.81,
        "top": [{"id": 381, "text": "def", "probability": 0.81}, …],
        "experts": {"1": [[3, 0.62], [11, 0.38]], …}
    }]}

Probabilities are those of the logits before temperature. ``experts`` has, for each sparse layer
of the forward pass whose logits the token was drawn from, the chosen experts and their weights.
"""

from __future__ import annotations

import math
from typing import Any

from laguna_ref.server.job import Token
from laguna_ref.server.logprobs import Names


def traced(token: Token, names: Names, top: int) -> dict[str, Any]:
    """One entry of ``tokens``."""
    score = token.scored
    result: dict[str, Any] = {"id": token.id, "text": names.text(token.id)}
    if score is not None:
        result["probability"] = math.exp(score.logprob)
        result["top"] = [
            {"id": other, "text": names.text(other), "probability": math.exp(logprob)}
            for other, logprob in score.top[:top]
        ]
    if token.experts is not None:
        result["experts"] = {str(layer): list(map(list, of)) for layer, of in token.experts.items()}
    return result
