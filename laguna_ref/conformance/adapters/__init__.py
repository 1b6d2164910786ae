"""The only modules that import a peer; each does so when it is asked for, never before.

A backend is named ``KIND`` or ``KIND:ARGUMENT`` on the command line. Each kind is one module of
this folder with a function ``opener(argument) -> Opener``, which raises BackendError where the peer
is not installed or the argument makes no sense.
"""

from __future__ import annotations

from importlib import import_module

from laguna_ref.conformance.backend import BackendError, Opener

MODULES = {
    "dump": "dump_folder",
    "llamacpp": "llamacpp_backend",
    "mlx": "mlx_backend",
    "openai": "openai_backend",
    "oracle": "oracle_backend",
    "python": "python_backend",
    "transformers": "transformers_backend",
    "vllm": "vllm_backend",
}


def opener(name: str) -> Opener:
    """What opens checkpoints in the backend of this name: ``transformers:cuda``, ``mlx``, ...

    Raises BackendError for a name or an argument that nobody knows, or a peer that is absent.
    """
    kind, _, argument = name.partition(":")
    if kind not in MODULES:
        raise BackendError("unknown backend", expected=", ".join(MODULES), found=name)
    module = import_module(f"laguna_ref.conformance.adapters.{MODULES[kind]}")
    opened: Opener = module.opener(argument or None)
    return opened
