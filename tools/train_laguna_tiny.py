"""Makes laguna-tiny, the checkpoint embedded in laguna_ref, from nothing but installed packages.

    python tools/train_laguna_tiny.py corpus              # 5 s: collect the sources of the corpus
    python tools/train_laguna_tiny.py tokenizer           # 30 s: train the BPE, encode the corpus
    python tools/train_laguna_tiny.py check               # the network against Transformers' own
    python tools/train_laguna_tiny.py train [--resume]    # an hour on two cores: Python text
    python tools/train_laguna_tiny.py export --state checkpoint.pt FIRST
    python tools/train_laguna_tiny.py dialogues           # 30 s: generate and encode conversations
    python tools/train_laguna_tiny.py converse FIRST [--resume]     # half an hour: both
    python tools/train_laguna_tiny.py settle FIRST [--resume]       # a third of that
    python tools/train_laguna_tiny.py export OUT          # quantise and write the folder
    python tools/train_laguna_tiny.py evaluate            # held-out bits per byte of the training
    python tools/train_laguna_tiny.py evaluate OUT        # of the folder, 15 minutes; expert load
    python tools/train_laguna_tiny.py evaluate-dialogues OUT        # held-out conversations
    python tools/train_laguna_tiny.py baseline            # a byte 5-gram on the same files

To train a published folder on, `tokenizer --published FOLDER` encodes the corpus with its
tokenizer, and `converse FOLDER` starts from its weights. State lives in --work. It needs the peers
extra (torch, transformers, tokenizers), jinja2 and, for torch.compile, a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laguna_tiny.conversing import ConversePlan
    from laguna_tiny.network import Parameters

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]

# Read at process start only. glibc returns every large buffer to the system and pays for its
# pages again at the next step: keeping them, in huge pages, doubles the speed. oneDNN generates
# code for each shape of product, and forgets it beyond 1,024 of them. Threads that spin for long
# at a barrier slow down whatever else the machine does.
ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192",
    "GOMP_SPINCOUNT": "1000",
    "LAGUNA_TINY_ENVIRONMENT": "set",
}


EMBEDDED = TOOLS.parent / "laguna_ref" / "data" / "laguna-tiny"
FIRST, SECOND, THIRD = "checkpoint.pt", "conversed.pt", "settled.pt"  # states of the trainings


def restart_with_environment() -> None:
    """Starts this process anew with ENVIRONMENT, once."""
    if sys.platform == "linux" and "LAGUNA_TINY_ENVIRONMENT" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})


def corpus(options: argparse.Namespace) -> None:
    """Collects the text."""
    from laguna_tiny import corpus

    documents, report = corpus.collect()
    corpus.save(documents, report, options.work)
    for entry in report:
        print(json.dumps(entry))


def tokenizer(options: argparse.Namespace) -> None:
    """Trains the tokenizer, or takes a published one, and encodes the text."""
    from laguna_tiny import bpe

    if options.published:
        trained = bpe.published(options.published)
    else:
        trained = bpe.train(bpe.sample_texts(options.work, 25_000_000, options.seed))
    trained.save(str(options.work / "tokenizer.json"))
    for split in ("train", "heldout"):
        bpe.encode_corpus(trained, options.work, split)


def check(options: argparse.Namespace) -> None:
    """Compares the training network with Transformers."""
    from laguna_tiny import architecture
    from laguna_tiny.check import greatest_difference

    found = greatest_difference(architecture.config(), options.seed)
    print(f"greatest difference of float32 logits: {found:.2e} standard deviations")
    if not found < 1e-4:
        raise SystemExit("the training network is not Laguna")


def train(options: argparse.Namespace) -> None:
    """Trains the weights."""
    restart_with_environment()
    import torch
    from laguna_tiny import architecture, training
    from laguna_tiny.network import initial_parameters

    torch.set_num_threads(options.threads)
    config, plan = architecture.config(), training.Plan(seed=options.seed)
    if options.steps:
        plan = replace(plan, steps=options.steps)
    stream = training.Stream(options.work, plan.seed)
    training.train(
        config, plan, initial_parameters(config, plan.seed),
        lambda step: training.batch(stream, step, plan), options.work / FIRST,
        options.resume, not options.eager, options.stop,
    )  # fmt: skip


def dialogues(options: argparse.Namespace) -> None:
    """Generates and encodes the conversations."""
    from laguna_tiny import dialogues

    print(json.dumps(dialogues.make(options.work, EMBEDDED, options.seed, options.count)))


def converse(options: argparse.Namespace) -> None:
    """Trains the weights of a folder on."""
    restart_with_environment()
    from laguna_tiny import architecture, conversing

    start = conversing.published_parameters(options.start, architecture.config())
    _train_on(options, conversing.ConversePlan(seed=options.seed + 1), start, SECOND)


def settle(options: argparse.Namespace) -> None:
    """Trains on from half-way between the folder's weights and those of `converse`."""
    restart_with_environment()
    from laguna_tiny import architecture, conversing, training

    start = conversing.mean(
        conversing.published_parameters(options.start, architecture.config()),
        training.load_checkpoint(options.work / SECOND),
    )
    _train_on(options, conversing.SettlePlan(seed=options.seed + 2), start, THIRD)


def _train_on(
    options: argparse.Namespace, plan: ConversePlan, start: Parameters, state: str
) -> None:
    import torch
    from laguna_tiny import architecture, conversing, training

    torch.set_num_threads(options.threads)
    if options.steps:
        plan = replace(plan, steps=options.steps)
    training.train(
        architecture.config(), plan, start, conversing.Mixture(options.work, plan).batch,
        options.work / state, options.resume, not options.eager, options.stop,
    )  # fmt: skip


def export(options: argparse.Namespace) -> None:
    """Writes the checkpoint."""
    from laguna_tiny import export

    export.export(options.work, options.work / options.state, options.out, options.seed)


def evaluate(options: argparse.Namespace) -> None:
    """Prints the figures of the model card."""
    from laguna_tiny import evaluation

    print(
        json.dumps(
            evaluation.evaluate(options.work, options.work / options.state, options.out), indent=2
        )
    )


def evaluate_dialogues(options: argparse.Namespace) -> None:
    """Prints how many held-out answers parse and are right."""
    from laguna_tiny import judging
    from laguna_tiny.dialogues import HELD_OUT_FILE

    path = options.work / HELD_OUT_FILE
    found = judging.evaluate(options.out, path, options.answers, options.seed)
    print(json.dumps(found, indent=2, ensure_ascii=False))


def baseline(options: argparse.Namespace) -> None:
    """Prints the n-gram model's bits per byte."""
    from laguna_tiny import baseline

    print(json.dumps(baseline.heldout_bits_per_byte(options.work), indent=2))


STAGES = (
    corpus, tokenizer, check, train, dialogues, converse, settle, export, evaluate,
    evaluate_dialogues, baseline,
)  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/laguna_tiny"))
    parser.add_argument("--seed", type=int, default=1)
    stages = parser.add_subparsers(required=True)
    for stage in STAGES:
        sub = stages.add_parser(stage.__name__.replace("_", "-"))
        sub.set_defaults(run=stage)
        if stage in (train, converse, settle):
            sub.add_argument("--resume", action="store_true")
            sub.add_argument("--steps", type=int, help="another length for the whole schedule")
            sub.add_argument("--stop", type=int, help="stop early, after this step")
            sub.add_argument("--threads", type=int, default=2)
            sub.add_argument("--eager", action="store_true", help="without torch.compile")
        if stage is tokenizer:
            sub.add_argument("--published", type=Path, help="take this folder's tokenizer")
        elif stage in (converse, settle):
            sub.add_argument("start", type=Path, help="the folder to go on from")
        elif stage is dialogues:
            sub.add_argument("--count", type=int, default=24_000)
        elif stage in (export, evaluate):
            sub.add_argument("--state", default=THIRD, help="the training's file in --work")
        elif stage is evaluate_dialogues:
            sub.add_argument("--answers", type=int, help="only the first of them")
        if stage in (export, evaluate_dialogues):
            sub.add_argument("out", type=Path)
        elif stage is evaluate:
            sub.add_argument("out", type=Path, nargs="?", help="an exported folder")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
