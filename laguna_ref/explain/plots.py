"""One plot a view; needs matplotlib (the extra ``report``).

Backgrounds are transparent, and all colours stand in the middle between black and white, so that
one picture reads on a light page and on a dark one.

>>> from laguna_ref import explain
>>> from laguna_ref.explain import plots
>>> plots.save(plots.rope(explain.rope(model.config)), "rope.svg")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from laguna_ref.errors import InputError
from laguna_ref.explain.attention_view import AttentionView
from laguna_ref.explain.diff_view import DiffView
from laguna_ref.explain.kv_view import KVView
from laguna_ref.explain.rope_view import RopeView
from laguna_ref.explain.routing_view import RoutingView
from laguna_ref.explain.token_view import TokenView
from laguna_ref.explain.weight_view import WeightView
from laguna_ref.numerics import Array

GREY, BLUE, ORANGE, GREEN, RED, VIOLET = (
    "#808488", "#3d85c6", "#dd7420", "#2f9e62", "#d9484f", "#9a6fd6",
)  # fmt: skip
WIDTH = 7.5
"""Inches: the width of a page of text."""
STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "font.size": 10,
    "grid.alpha": 0.35,
    "grid.color": GREY,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "svg.fonttype": "path",
    "svg.hashsalt": "laguna_ref",
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}
KIND_COLOURS = {"full_attention": BLUE, "sliding_attention": ORANGE}
LEAST_ERROR = 1e-9
"""Relative errors below, and zero, are drawn here: a logarithmic axis has no place for them."""

Quoted = Callable[[int], str]
"""A token's text for a label; ``str`` where there is no tokenizer."""


def require_matplotlib() -> None:
    """Raises InputError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as problem:
        raise InputError(
            "plots need matplotlib: pip install 'laguna-ref[report]'", found="not installed"
        ) from problem


def save(figure: Any, path: str | Path) -> None:
    """Writes a figure as PNG or SVG, by the name's ending; the same figure gives the same file."""
    path = Path(path)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with _style():
        figure.savefig(path, dpi=160, transparent=True, metadata=metadata)


def token(view: TokenView, quoted: Quoted = str) -> Any:
    """Norms of what is added, layer by layer, and the probability of the answer by depth."""
    with _figure(5.6, 2, sharex=True) as (figure, (top, bottom)):
        _norms(top, view)
        x = range(-1, len(view.layers))
        logprobs = [view.embedding_answer_logprob]
        logprobs += [step.answer_logprob for step in view.layers]
        bottom.plot(x, np.exp(logprobs), "o-", color=RED, markersize=4)
        says = [view.embedding_lens[0], *(step.lens[0] for step in view.layers)]
        step = max(1, math.ceil(len(says) / 14))
        for at, guess in list(zip(x, says, strict=True))[::-step]:
            bottom.annotate(
                _token(quoted(guess.token), 9), (at, 1.0), (-4, 3), rotation=30, fontsize=9,
                xycoords=("data", "axes fraction"), textcoords="offset points",
                annotation_clip=False,
            )  # fmt: skip
        answer = _token(quoted(view.guesses[0].token), 16)
        highest = max(0.05, 1.15 * math.exp(max(logprobs)))
        bottom.set(ylim=(0, min(1.0, highest)), ylabel="probability",
                   xlabel="layer (-1: the embedding)",
                   xlim=(-1.6, len(view.layers) - 0.4))  # fmt: skip
        bottom.set_title(f"If it stopped here: probability of {answer}; above, the likeliest "
                         "token", pad=30)  # fmt: skip
        _layer_ticks(bottom, len(view.layers), first=-1)
        return figure


def attention(
    view: AttentionView, quoted: Quoted = str, layer: int | None = None, head: int | None = None
) -> Any:
    """How far back each head looks, by layer; or the map of one ``layer`` of the view's maps."""
    if layer is not None:
        return _map(view, quoted, layer, head)
    with _figure(3.6, 1) as (figure, axes):
        for kind, colour in KIND_COLOURS.items():
            of_kind = [one for one in view.layers if one.layer.attention == kind]
            x = [one.layer.index for one in of_kind for _ in one.distance]
            y = [max(float(d), 0.1) for one in of_kind for d in one.distance]
            if x:
                spread = _spread([len(one.distance) for one in of_kind])
                axes.plot(np.add(x, spread), y, ".", color=colour, markersize=6, alpha=0.8,
                          label=f"a head, {kind.replace('_', ' ')}")  # fmt: skip
        windows = {one.layer.window for one in view.layers} - {None}
        for window in sorted(w for w in windows if w is not None and w <= 2 * len(view.tokens)):
            axes.axhline(window, color=GREY, linewidth=1, linestyle=":")
            axes.annotate(f"window of {window}", (1, window), fontsize=9, ha="right", va="bottom",
                          xycoords=("axes fraction", "data"))  # fmt: skip
        axes.set(yscale="log", xlabel="layer", ylabel="tokens back, mean")
        axes.set_title(f"How far back each head looks, over {len(view.tokens)} tokens")
        axes.grid(axis="y")
        _layer_ticks(axes, len(view.layers))
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def routing(view: RoutingView) -> Any:
    """Load of every expert by layer, and how wide the margins are."""
    with _figure(4.6, 1, 2, width_ratios=(3, 2)) as (figure, (left, right)):
        load = np.array([one.load for one in view.layers], dtype=np.float64)
        even = len(view.tokens) * view.top_k / view.experts
        image = left.imshow(load / even, aspect="auto", cmap="viridis", interpolation="nearest")
        ticks = range(0, len(view.layers), max(1, len(view.layers) // 10))
        labels = [str(view.layers[i].layer) for i in ticks]
        left.set_yticks(list(ticks), labels)
        left.set(xlabel="expert", ylabel="layer", title="Load; 1 is an even one")
        bar = figure.colorbar(image, ax=left, location="bottom", shrink=0.8)
        bar.outline.set_visible(False)
        margins = [np.maximum(one.margins, 1e-7) for one in view.layers]
        layers = np.array([one.layer for one in view.layers])
        for share, colour in ((50, BLUE), (5, ORANGE), (0, RED)):
            name = "least" if share == 0 else "median" if share == 50 else f"{share} % are below"
            right.plot([np.percentile(m, share) for m in margins], layers, ".-", color=colour,
                       label=name)  # fmt: skip
        right.set(xscale="log", xlabel="margin of selection scores", title="Margins")
        right.set_yticks([int(label) for label in labels], labels)
        right.invert_yaxis()
        right.grid(axis="x")
        figure.legend(loc="outside lower right", ncols=3, fontsize=9)
        return figure


def rope(view: RopeView) -> Any:
    """Wavelength of every rotated pair, with and without YaRN."""
    with _figure(3.8, 1) as (figure, axes):
        for one in view.kinds:
            colour = KIND_COLOURS[one.attention]
            name = one.attention.replace("_", " ")
            dims = 2 * np.arange(len(one.wavelength)) / one.spec.rotary_dim
            axes.plot(dims, one.wavelength, ".-", color=colour,
                      label=f"{name}, theta {one.spec.rope_theta:,.0f}")  # fmt: skip
            if one.spec.rope_type == "yarn":
                axes.plot(dims, one.plain, ":", color=colour, label=f"{name}, without YaRN")
                inside = dims[(one.ramp > 0) & (one.ramp < 1)]
                if len(inside):
                    axes.axvspan(inside[0], inside[-1], color=colour, alpha=0.15, linewidth=0,
                                 label="YaRN's ramp")  # fmt: skip
                _context(axes, one.turns_over, "original context")
        _context(axes, view.max_position_embeddings, "context")
        axes.set(yscale="log", xlabel="pair, as a share of the rotated pairs (0: fastest)",
                 ylabel="wavelength in tokens")  # fmt: skip
        axes.set_title("Tokens after which a pair has turned once")
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        return figure


def weight(view: WeightView) -> Any:
    """Values of the columns shown, each with what rounding can have moved it by."""
    panels = 1 if view.packed is None else 2
    with _figure(2.6 + 2.2 * (panels - 1), panels) as (figure, found):
        axes = np.atleast_1d(np.asarray(found, dtype=object))
        columns = np.array(view.columns)
        if view.packed is None:
            axes[0].bar(columns, view.values, color=BLUE, width=0.8)
        else:
            half = [view.packed.groups[c // view.packed.group_size].half_step for c in columns]
            axes[0].bar(columns, view.values, color=BLUE, width=0.8, yerr=half, ecolor=GREY,
                        error_kw={"linewidth": 1})  # fmt: skip
            counts = view.packed.counts / view.packed.counts.sum()
            codes = np.arange(len(counts)) - len(counts) // 2
            axes[1].bar(codes, 100 * counts, color=ORANGE, width=0.8)
            axes[1].set(xlabel="code", ylabel="% of weights")
            axes[1].set_title(f"How often each INT{view.packed.bits} code occurs")
        axes[0].axhline(0, color=GREY, linewidth=0.8)
        axes[0].set(xlabel="column", ylabel="value")
        ranges = "" if view.packed is None else "; lines: half a step"
        axes[0].set_title(f"{view.name}, row {view.row}{ranges}", fontsize=10)
        return figure


def kv(view: KVView) -> Any:
    """FP8 error, and how much of FP8's range is used, by layer."""
    with _figure(4.8, 2, sharex=True) as (figure, (top, bottom)):
        x = [one.layer.index for one in view.layers]
        for name, colour, marker in (("keys", BLUE, "o-"), ("values", ORANGE, "s-")):
            sides = [getattr(one, name) for one in view.layers]
            top.plot(x, [100 * side.relative_error for side in sides], marker, color=colour,
                     markersize=4, label=name)  # fmt: skip
            bottom.plot(x, [100 * side.range_used for side in sides], marker, color=colour,
                        markersize=4)  # fmt: skip
        bottom.axhline(100, color=RED, linewidth=1, label="saturates above")
        top.set(ylabel="RMS error, %", ylim=(0, None))
        top.set_title(f"What FP8 costs, over {len(view.tokens)} tokens")
        bottom.set(xlabel="layer", ylabel="range used, %")
        if max(max(x.keys.range_used, x.values.range_used) for x in view.layers) > 3:
            bottom.set(yscale="log")
        else:
            bottom.set_ylim(bottom=0)
        for axes in (top, bottom):
            axes.grid(axis="y")
        _layer_ticks(bottom, len(view.layers))
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def diff(view: DiffView, a: str = "A", b: str = "B") -> Any:
    """Relative error over depth, flipped experts, and the KL divergence by position."""
    with _figure(6.4, 3, height_ratios=(3, 1.6, 2)) as (figure, (top, middle, bottom)):
        x = [one.layer.index for one in view.layers]
        for name, colour, label in (
            ("residual", BLUE, "residual stream"),
            ("attention", ORANGE, "attention adds"),
            ("mlp", GREEN, "MLP or experts add"),
        ):
            errors = [_mean(getattr(one, name)) for one in view.layers]
            top.plot(x, errors, ".-", color=colour, label=label)
        top.set(yscale="log", ylabel="relative error", xlabel="layer")
        top.set_title(_label(f"B, {b}, against A, {a}", 70))
        figure.legend(fontsize=9, ncols=3, loc="outside lower center")
        flips = [0 if one.flipped is None else 100 * float((one.flipped > 0).mean())
                 for one in view.layers]  # fmt: skip
        middle.bar(x, flips, color=VIOLET, width=0.7)
        middle.set(ylabel="% flipped", xlabel="layer")
        for axes in (top, middle):
            axes.grid(axis="y")
            _layer_ticks(axes, len(view.layers))
            axes.set_xlim(-0.6, len(view.layers) - 0.4)
        bottom.plot(np.maximum(view.kl, LEAST_ERROR), ".-", color=RED, linewidth=0.8)
        bottom.set(yscale="log", xlabel="token", ylabel="KL(A || B), nats")
        bottom.xaxis.get_major_locator().set_params(integer=True)
        bottom.grid(axis="y")
        return figure


@contextmanager
def _style() -> Iterator[None]:
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


@contextmanager
def _figure(height: float, rows: int, columns: int = 1, **options: Any) -> Iterator[Any]:
    """A figure of page width and its axes, made and filled in the style."""
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, **options)


def _norms(axes: Any, view: TokenView) -> None:
    """Stacked bars of the contributions' norms; the stream's own as a line."""
    layers = range(len(view.layers))
    below = np.zeros(len(view.layers))
    for name, colour in (("attention", BLUE), ("dense_mlp", VIOLET), ("shared_experts", GREEN),
                         ("routed_experts", ORANGE)):  # fmt: skip
        sizes = np.array([step.norms.get(name, 0.0) for step in view.layers])
        if sizes.any():
            axes.bar(layers, sizes, bottom=below, color=colour, width=0.7,
                     label=name.replace("_", " "))  # fmt: skip
        below += sizes
    axes.plot(range(-1, len(view.layers)), [view.layers[0].before,
              *(step.after for step in view.layers)], "o-", color=GREY, markersize=4,
              label="residual stream", zorder=5)  # fmt: skip
    axes.set(ylabel="norm")
    axes.set_title(f"What each layer adds to token {view.position}'s residual stream")
    axes.legend(fontsize=9, ncols=2, loc="upper left")


def _map(view: AttentionView, quoted: Quoted, layer: int, head: int | None) -> Any:
    kept = view.layers[layer].map
    if kept is None:
        raise InputError("no map was kept of this layer", expected="maps=[layer]", found=layer)
    shown = kept.mean(axis=0) if head is None else kept[head]
    first = len(view.tokens) - len(shown)
    with _figure(6.6, 1) as (figure, axes):
        visible = np.where(np.tri(len(shown), dtype=bool), shown, np.nan)
        from matplotlib.colors import PowerNorm

        # The first tokens have few keys to look at, so their probabilities are large.
        image = axes.imshow(visible, cmap="viridis", interpolation="nearest",
                            norm=PowerNorm(0.5, 0, float(np.nanmax(visible))))  # fmt: skip
        step = max(1, math.ceil(len(shown) / 32))
        ticks = range(0, len(shown), step)
        names = [_token(quoted(int(view.tokens[first + i])), 10) for i in ticks]
        axes.set_xticks(list(ticks), names, rotation=90, fontsize=8)
        axes.set_yticks(list(ticks), names, fontsize=8)
        which = "mean of all heads" if head is None else f"head {head}"
        axes.set(xlabel="key", ylabel="query")
        axes.set_title(f"Layer {layer}, {which}: the last {len(shown)} tokens")
        bar = figure.colorbar(image, ax=axes, shrink=0.7, label="probability")
        bar.outline.set_visible(False)
        return figure


def _context(axes: Any, tokens: int, name: str) -> None:
    axes.axhline(tokens, color=GREY, linewidth=1, linestyle=":")
    axes.annotate(f"{name}, {tokens:,}", (0, tokens), fontsize=9, va="bottom",
                  xycoords=("axes fraction", "data"))  # fmt: skip


def _layer_ticks(axes: Any, count: int, first: int = 0) -> None:
    step = max(1, math.ceil(count / 20))
    axes.set_xticks(range(first, count, step) if step == 1 else range(0, count, step))


def _spread(heads: list[int]) -> Array:
    """Sideways places for the heads of each layer, so that they do not hide each other."""
    return np.concatenate([np.linspace(-0.3, 0.3, count) for count in heads])


def _mean(errors: Array) -> float:
    return max(float(errors.mean()), LEAST_ERROR)


def _label(text: str, width: int) -> str:
    """Text for a plot: in ASCII, so that no font lacks it, not too long, and no mathtext."""
    plain = text.encode("ascii", "backslashreplace").decode()
    short = plain if len(plain) <= width else plain[: width - 3] + "..."
    return short.replace("$", r"\$")


def _token(text: str, width: int) -> str:
    """A token's text, whose spaces are to be seen."""
    return _label(text, width).replace(" ", "\N{MIDDLE DOT}")
