"""``llamacpp[:WORD,...]``: llama.cpp on a GGUF file in float32 that is written for it.

Words of the argument: ``f16`` (llama.cpp's default cache and attention; without it float32 keys
and values), ``betas`` (YaRN's ``beta_fast`` and ``beta_slow`` are given to it, as its own options
``--yarn-beta-fast`` and ``-slow`` do: it does not read them from the file), ``converted`` (a file
with the keys that llama.cpp's own converter writes, so without ``rope.scaling.attn_factor``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from laguna_ref.conformance.adapters.installed import require
from laguna_ref.conformance.adapters.words import settings_of
from laguna_ref.conformance.backend import Backend, Opener

WORDS = {word: (word, True) for word in ("f16", "betas", "converted")}


@dataclass(frozen=True)
class Settings:
    """What ``llamacpp:...`` asks for."""

    f16: bool = False
    betas: bool = False
    converted: bool = False


def opener(argument: str | None) -> Opener:
    """Raises BackendError where llama.cpp is missing or the argument makes no sense."""
    settings = parse(argument)
    require("llama.cpp", ("llama_cpp", "gguf"), "llamacpp")

    def opened(folder: Path) -> Backend:
        from laguna_ref.conformance.adapters import llamacpp_logits

        return llamacpp_logits.opened(folder, settings)

    return opened


def parse(argument: str | None) -> Settings:
    """The settings that an argument spells; raises BackendError."""
    return Settings(**settings_of("llamacpp", argument, WORDS))
