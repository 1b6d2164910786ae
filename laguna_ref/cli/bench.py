"""``laguna-ref bench``: how fast this machine runs the model, and how fast it could."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laguna_ref.cli.options import ModelCommand, ModelOptions, model_options
from laguna_ref.cli.output import human, note, print_json, print_table, progress
from laguna_ref.cli.prompts import parse_token_ids
from laguna_ref.errors import InputError

if TYPE_CHECKING:
    from laguna_ref.bench.machine import Machine
    from laguna_ref.bench.peers import Peer
    from laguna_ref.bench.runs import Result, Runs
    from laguna_ref.model import Laguna

DEFAULT_PRESET = "xs2-int4"
DEFAULT_LAYERS = 4
CONTEXTS = (1, 4096, 32768, 131072)
PROMPTS = (64, 512, 4096)
BATCHES = (1, 4, 16)
QUICK_CONTEXTS = (1, 4096)
QUICK_PROMPTS = (64, 512)
QUICK_BATCHES = (1,)
EFFORT = (9, 3.0)
"""Repeats and seconds that each run is given at least."""
QUICK_EFFORT = (3, 1.0)
SCALED_PROMPT = 512
"""The prefill that is also run on one thread, and by peers."""
PEER_NAMES = ("transformers", "llamacpp")


@click.command("bench", cls=ModelCommand)
@click.option(
    "--preset", "preset_name", metavar="NAME",
    help="A published config whose weights are made up, or laguna-tiny, which comes with the "
    f"package.  [default: {DEFAULT_PRESET}]",
)  # fmt: skip
@click.option(
    "--layers", type=click.IntRange(min=1),
    help=f"Only the preset's first so many layers.  [default: {DEFAULT_LAYERS}]",
)  # fmt: skip
@click.option("--layer-ids", metavar="IDS", help="Only these layers, renumbered: 0,1,2,31.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where the made-up checkpoint (2.5 GB for 4 layers) is written, and kept for the next "
    "run. Default: a temporary folder.",
)  # fmt: skip
@click.option("--contexts", metavar="LIST", help="Decode behind so many tokens: 1,4096.")
@click.option("--prompts", metavar="LIST", help="Prefill so many tokens: 64,512.")
@click.option("--batches", metavar="LIST", help="Decode so many sequences at a time: 1,4.")
@click.option("--quick", is_flag=True, help="A short run: fewer sizes, fewer repeats.")
@click.option(
    "--peers/--no-peers", "with_peers", default=None,
    help="Also run other implementations on the same weights: those of Transformers and "
    "llama.cpp that are installed.  [default: with peers, unless --quick]",
)  # fmt: skip
@click.option(
    "--peer", "peer_names", multiple=True, metavar="NAME", type=click.Choice(PEER_NAMES),
    help="Run this peer, and no other that is not named: transformers, llamacpp. Repeatable.",
)  # fmt: skip
@click.option("--operations", is_flag=True, help="Also show where the time of each run went.")
@model_options
def command(
    options: ModelOptions,
    preset_name: str | None,
    layers: int | None,
    layer_ids: str | None,
    folder: Path | None,
    contexts: str | None,
    prompts: str | None,
    batches: str | None,
    quick: bool,
    with_peers: bool | None,
    peer_names: tuple[str, ...],
    operations: bool,
) -> None:
    """Measure decoding and prefill, each as a share of what this machine allows.

    One run measures how fast the machine reads memory and multiplies matrices, counts the bytes
    and operations that the model needs, and times it. Weights are those of --model, or made up
    at the true width of a published model. docs/performance.md says what each figure means.
    """
    from laguna_ref.bench.machine import cores, faster, measure
    from laguna_ref.bench.others import note as note_on_others
    from laguna_ref.bench.others import usage
    from laguna_ref.bench.report import to_json

    if peer_names and with_peers is False:
        raise InputError("give --peer or --no-peers, not both")
    threads = options.threads or cores()
    counts = sorted({1, threads})
    with _model(options, preset_name, layers, layer_ids, folder) as model:
        before = usage()
        note(f"measuring this machine with {' and '.join(map(str, counts))} threads")
        machine = measure(counts, quick=quick)
        bench = _Bench(model, counts, quick)
        bench.warm_up()
        limit = model.config.max_position_embeddings
        results = bench.prefills(_sizes(prompts, QUICK_PROMPTS if quick else PROMPTS, limit))
        results += bench.decodes(
            _sizes(contexts, QUICK_CONTEXTS if quick else CONTEXTS, limit),
            _sizes(batches, QUICK_BATCHES if quick else BATCHES, None),
        )
        notes = _held_back(options, model)
        if peer_names or with_peers or (with_peers is None and not quick):
            notes += bench.add_peers(results, peer_names, asked=bool(with_peers))
        # Twice, because another program may have been busy at the first time.
        machine = faster(machine, measure(counts, quick=quick))
        notes += note_on_others(before)
        settings = options.settings(model) | {"layers": model.config.num_hidden_layers}
    if options.as_json:
        print_json(to_json(machine, results, settings, notes))
    else:
        _print(machine, results, settings, notes, operations)


@contextmanager
def _model(
    options: ModelOptions,
    preset_name: str | None,
    layers: int | None,
    layer_ids: str | None,
    folder: Path | None,
) -> Iterator[Laguna]:
    """The model to measure; what was made up in a temporary folder is removed again."""
    from laguna_ref.bench import slices

    if layers is not None and layer_ids is not None:
        raise InputError("give --layers or --layer-ids, not both")
    cut = preset_name is not None or layers is not None or layer_ids is not None
    if options.model is not None and (cut or folder is not None):
        raise InputError("give --model, or a --preset to make up weights for, not both")
    if options.model is not None or preset_name == slices.EMBEDDED:
        yield options.load()
        return
    ids = None if layer_ids is None else parse_token_ids(layer_ids)
    count = DEFAULT_LAYERS if layers is None and ids is None else layers
    config = slices.slice_config(preset_name or DEFAULT_PRESET, count, ids)
    with tempfile.TemporaryDirectory(prefix="laguna-ref-bench-") as temporary:
        target = folder or Path(temporary) / "model"
        with progress(f"writing {target}", unit="B") as bar:
            made = slices.make(config, target, bar)
        note(f"{target}: {config.num_hidden_layers} layers, {'made up' if made else 'reused'}")
        yield replace(options, model=str(target)).load()


def _held_back(options: ModelOptions, model: Laguna) -> list[str]:
    """A note if the environment holds OpenBLAS, and with it the NumPy engine, to an old kernel."""
    import os

    from laguna_ref.bench.sgemm import HELD_BACK_BY

    found = [f"{name}={os.environ[name]}" for name in HELD_BACK_BY if name in os.environ]
    if not found or options.settings(model)["engine"] != "numpy":
        return []
    return [f"{' '.join(found)} was in effect for the numpy engine; sgemm was measured without"]


def _sizes(given: str | None, default: tuple[int, ...], limit: int | None) -> list[int]:
    """The numbers given, or those of the default that the model has positions for."""
    if given is None:
        return [size for size in default if limit is None or size <= limit]
    sizes = parse_token_ids(given)
    if 0 in sizes or not sizes or (limit is not None and max(sizes) > limit):
        raise InputError(
            "no such size", expected=f"1 to {limit}" if limit else "1 or more", found=given
        )
    return sizes


class _Bench:
    """The runs of one command, in order; says on stderr what it is about to do."""

    def __init__(self, model: Laguna, thread_counts: list[int], quick: bool) -> None:
        from laguna_ref.bench.runs import Runs
        from laguna_ref.bench.timing import Effort

        self.threads = thread_counts[-1]
        self.thread_counts = thread_counts
        self.effort = Effort(*(QUICK_EFFORT if quick else EFFORT))
        self.runs: Runs = Runs(model, self.effort)

    def warm_up(self) -> None:
        """Reads the whole checkpoint once, and compiles kernels."""
        from laguna_ref.bench.slices import words_of

        note("reading the weights once")
        for words in words_of(self.runs.model):
            words.sum()
        self.runs.prefill(2, self.threads, profile=False)

    def prefills(self, prompts: list[int]) -> list[Result]:
        results = []
        for tokens in prompts:
            for threads in self.thread_counts if tokens == SCALED_PROMPT else [self.threads]:
                note(f"prefill {tokens}, {threads} threads")
                results.append(self.runs.prefill(tokens, threads))
        return results

    def decodes(self, contexts: list[int], batches: list[int]) -> list[Result]:
        results = []
        for context in contexts:
            short = context == min(contexts)
            for batch in batches if short else [1]:
                for threads in self.thread_counts if short and batch == 1 else [self.threads]:
                    note(f"decode at context {context}, batch {batch}, {threads} threads")
                    results.append(self.runs.decode(context, threads, batch=batch))
        return results

    def add_peers(self, results: list[Result], names: tuple[str, ...], *, asked: bool) -> list[str]:
        """Runs peers on what they can be compared in; returns what there is to say.

        Without names all that are installed; ``asked`` if there should be one.
        """
        from laguna_ref.bench.peers import PEERS

        missing = {name: peer for name, peer in PEERS.items() if not peer.installed()}
        for name in names or (missing if asked and len(missing) == len(PEERS) else ()):
            if name in missing:
                peer = missing[name]
                raise InputError(
                    f"{peer.title} is not installed", expected=f"the extra: {peer.extra}"
                )
        same = [
            one for one in results
            if one.threads == self.threads and one.batch == 1
            and (one.context == 1 or (one.what, one.tokens) == ("prefill", SCALED_PROMPT))
        ]  # fmt: skip
        notes = []
        for name in names or PEERS:
            notes += (
                [f"{PEERS[name].title} is not installed: it was not run"]
                if name in missing
                else self._add_peer(PEERS[name], results, same)
            )
        return notes

    def _add_peer(self, peer: Peer, results: list[Result], same: list[Result]) -> list[str]:
        from laguna_ref.bench.peers import measure

        for missing, of in (
            (peer.missing_memory(self.runs), "memory"), (peer.missing_disk(self.runs), "disk"),
        ):  # fmt: skip
            if missing:
                return [f"{peer.title} was not run: {human(missing, 'B')} of {of} too little"]
        note(f"running {peer.title} on the same weights")
        found, said = measure(peer, self.runs, same, self.threads, self.effort)
        results += found
        return [said]


def _print(
    machine: Machine,
    results: list[Result],
    settings: dict[str, Any],
    notes: list[str],
    operations: bool,
) -> None:
    from laguna_ref.bench import report

    click.echo(
        f"{machine.cpu}, compiled for {machine.target}; {settings['layers']} layers, "
        f"{settings['numerics']}, engine {settings['engine']}"
    )
    print_table([">threads", ">reads", ">sgemm"], report.machine_rows(machine))
    print_table(report.COLUMNS, report.result_rows(machine, results))
    if operations:
        for one in results:
            if one.operations:
                head = f"{one.what} {one.tokens} at {one.context}, {one.threads} threads"
                print_table(["operation", ">ms", ">share"], report.operation_rows(one), title=head)
    for line in notes:
        note(line)


# click shares the option with every other command, where laguna-tiny is the default.
for _parameter in command.params:
    if isinstance(_parameter, click.Option) and _parameter.name == "model":
        _parameter.help = "Checkpoint folder to measure instead of a preset."
