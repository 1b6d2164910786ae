"""llama.cpp on the same weights: a script that ``peers`` starts in a process of its own.

The checkpoint is written as a GGUF file in bfloat16 into the folder that the request names;
other types are made from that file by llama.cpp's own quantiser. See ``speed`` for what goes in
and out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp

import laguna_ref
from laguna_ref.conformance.adapters.gguf_export import export
from laguna_ref.conformance.adapters.llamacpp_model import LlamaCppModel, quantise
from laguna_ref.conformance.adapters.speed import AGREEMENT_TOKENS, Agreement, seconds

QUANTISED = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def main() -> None:
    """Writes, loads, compares and times every file type asked for."""
    request = json.load(sys.stdin)
    # The file holds what the released loaders would: weights rounded to bfloat16.
    ours = Agreement(request["path"], dequant="bf16")
    timings, agreement = {}, {}
    for name, file in files(request):
        model = LlamaCppModel(file, context(request), request["threads"])
        agreement[name] = ours.with_logits(model.run(ours.tokens, last_only=False))
        model.forget()
        timings[name] = seconds(model.run, request, after=model.forget)
        model.close()
    versions = {"llama-cpp-python": version("llama-cpp-python")}
    json.dump({"seconds": timings, "agreement": agreement, "versions": versions}, sys.stdout)


def files(request: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """The GGUF file of each type asked for, bfloat16 first."""
    folder = Path(request["folder"])
    source = folder / "BF16.gguf"
    export(laguna_ref.checkpoint.open(request["path"]), source)
    for name in request["variants"]:
        file = folder / f"{name}.gguf"
        if file != source:
            quantise(source, file, QUANTISED[name], request["threads"])
        yield name, file


def context(request: dict[str, Any]) -> int:
    """Tokens of the longest run."""
    return max(AGREEMENT_TOKENS, *(len(asked["tokens"]) for asked in request["runs"]))


if __name__ == "__main__":
    main()
