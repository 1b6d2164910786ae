"""Plots of a report as SVG text; needs matplotlib (the extra ``report``)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from laguna_ref.conformance.report import Report

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "laguna_ref", "font.size": 9}
FLOOR = 1e-3
"""Floor units below this are drawn at it: an exact value has no place on a logarithmic axis."""


def plots_of(report: Report) -> list[tuple[str, str]]:
    """(caption, SVG) of every plot that the report has numbers for."""
    drawn = [
        ("Error in floor units over depth; the line is what legal reports stay under",
         _depth(report)),
        ("Residual stream, floor units by layer and token", _heat(report)),
        (("Choices of experts: margin in units of its noise; a flip beyond the threshold would be a"
         " violation"), _flips(report)),
        ("KL divergence of the next-token distribution by position", _kl(report)),
    ]  # fmt: skip
    return [(caption, svg) for caption, svg in drawn if svg]


def _figure(height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _depth(report: Report) -> str:
    if not report.points:
        return ""
    figure, axes = _figure()
    order = {point: at for at, point in enumerate(dict.fromkeys(p.point for p in report.points))}
    for mode in dict.fromkeys(point.mode for point in report.points):
        of_mode = [point for point in report.points if point.mode == mode]
        x = [order[point.point] for point in of_mode]
        axes.plot(x, [max(point.floor_units, FLOOR) for point in of_mode], ".", label=mode)
    if report.threshold:
        axes.axhline(report.threshold, color="0.3", linewidth=1)
    starts = [(at, p) for p, at in order.items() if p.endswith(".input_layernorm")]
    axes.set_xticks([at for at, _ in starts], [p.split(".")[2] for _, p in starts])
    axes.set(yscale="log", xlabel="layer, in order of execution", ylabel="floor units")
    axes.legend()
    return _svg(figure)


def _heat(report: Report) -> str:
    heat = report.plots.heat
    if heat is None:
        return ""
    figure, axes = _figure()
    image = axes.imshow(
        np.log10(np.maximum(heat, FLOOR)), aspect="auto", origin="lower", interpolation="nearest"
    )
    axes.set(xlabel="token", ylabel="layer")
    figure.colorbar(image, label="log10 of floor units")
    return _svg(figure)


def _flips(report: Report) -> str:
    flips = report.plots.flips
    if not flips:
        return ""
    figure, axes = _figure()
    for differs, colour, name in ((False, "0.75", "same experts"), (True, "tab:red", "flipped")):
        chosen = [flip for flip in flips if flip[3] == differs]
        x = [flip[0] for flip in chosen]
        y = [max(flip[2], FLOOR) for flip in chosen]
        axes.plot(x, y, ".", color=colour, label=f"{name}: {len(chosen)}")
    if report.threshold:
        axes.axhline(report.threshold, color="0.3", linewidth=1)
    axes.set(yscale="log", xlabel="layer", ylabel="margin over noise")
    axes.legend()
    return _svg(figure)


def _kl(report: Report) -> str:
    kl = report.plots.kl
    if kl is None:
        return ""
    figure, axes = _figure(2.6)
    axes.plot(np.maximum(kl, np.finfo(np.float64).tiny), ".-", linewidth=0.7)
    axes.set(yscale="log", xlabel="token", ylabel="nats")
    return _svg(figure)
