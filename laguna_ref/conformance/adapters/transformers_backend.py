"""``transformers[:DEVICE,DTYPE,...]``: Hugging Face Transformers' own Laguna.

The argument is a comma list of a device (``cpu``, ``cuda``, ``cuda:1``, ``mps``), a type
(``float32``, ``bfloat16``) and ``float-cache`` (keys and values as they are, even where the
checkpoint declares FP8); ``cpu,float32`` without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from laguna_ref.conformance.adapters.installed import require
from laguna_ref.conformance.adapters.words import Spelled, settings_of
from laguna_ref.conformance.backend import Backend, Opener

DEVICE = Spelled("device", re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?"), "a device such as cuda:0")
WORDS = {
    "float32": ("dtype", "float32"),
    "bfloat16": ("dtype", "bfloat16"),
    "float-cache": ("float_cache", True),
}


@dataclass(frozen=True)
class Settings:
    """What ``transformers:...`` asks for."""

    device: str = "cpu"
    dtype: str = "float32"
    """``float32`` or ``bfloat16``."""
    float_cache: bool = False
    """A float cache even where the checkpoint declares an FP8 one."""


def opener(argument: str | None) -> Opener:
    """Raises BackendError where Transformers is missing or the argument makes no sense."""
    settings = parse(argument)
    require("Transformers", ("torch", "transformers", "compressed_tensors"), "peers")

    def opened(folder: Path) -> Backend:
        from laguna_ref.conformance.adapters import transformers_model

        return transformers_model.opened(folder, settings)

    return opened


def parse(argument: str | None) -> Settings:
    """The settings that an argument spells; raises BackendError."""
    return Settings(**settings_of("transformers", argument, WORDS, DEVICE))
