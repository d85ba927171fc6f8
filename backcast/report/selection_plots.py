"""A selection's histograms and its gain over rank as inline SVG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from backcast.report.choice import Choice, Gain, Histogram, Nearness
from backcast.report.plots import BOTTOM, MUTED, NARROW, RIGHT, SERIES, WIDE, Frame, inline_svg

#: Above the axes, for the vertical one's name.
HEAD = 30
#: A plot's height, wide and narrow; one of several groups of targets is lower.
HEIGHTS, LOW = (230, 200), (130, 120)
#: Of the chosen, and of what they are set against.
LOOKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("chosen", {"color": SERIES[0], "fill": False, "linewidth": 2.2, "zorder": 3}),
    ("others", {"color": MUTED, "alpha": 0.3, "fill": True, "linewidth": 0}),
)


def selection_svgs(choice: Choice) -> dict[str, list[Markup]]:
    """Every plot of a selection by its name, wide and narrow: ``scores``, ``scores-1`` ..., ``gain``, ``redundancy``,
    ``coverage``. The same numbers give the same bytes."""
    found = {
        f"scores-{place}" if place else "scores": _both(f"scores-{place}", histogram, place > 0)
        for place, histogram in enumerate(choice.scores)
    }
    if choice.gain:
        found["gain"] = _both("gain", choice.gain)
    near: dict[str, Nearness | None] = {"redundancy": choice.redundancy, "coverage": choice.coverage}
    found |= {name: _both(name, each.cosines) for name, each in near.items() if each}
    return found


def _both(name: str, drawn: Histogram | Gain, low: bool = False) -> list[Markup]:
    return [
        Markup(selection_svg(drawn, frame._replace(height=height), name))
        for frame, height in zip((WIDE, NARROW), LOW if low else HEIGHTS, strict=True)
    ]


def selection_svg(drawn: Histogram | Gain, frame: Frame, name: str) -> str:
    """One plot; ``name`` must be its alone on the page."""

    def draw(ax: Axes) -> None:
        if isinstance(drawn, Gain):
            _draw_gain(ax, drawn)
        else:
            _draw_histogram(ax, drawn)

    return inline_svg(lambda: _figure(draw, frame), frame.font, salt=f"{name} {frame.width}")


def _figure(draw: Callable[[Axes], None], frame: Frame) -> Figure:
    width, height = frame.width - frame.left - RIGHT, HEAD + frame.height + BOTTOM
    figure = Figure(figsize=(frame.width / 72, height / 72))
    ax = figure.add_axes(
        (frame.left / frame.width, BOTTOM / height, width / frame.width, frame.height / height)
    )
    ax.tick_params(length=0, pad=7)
    ax.grid(axis="y", linewidth=1)
    draw(ax)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def _draw_histogram(ax: Axes, histogram: Histogram) -> None:
    """Each group's share of rows by bin: the chosen as a filled outline, what they are set against in grey."""
    edges = np.array(histogram.edges)
    for counts, (who, look) in zip(reversed(histogram.counts), LOOKS, strict=False):
        shares = 100 * np.array(counts) / max(sum(counts), 1)
        ax.stairs(shares, edges, gid=f"plot-{who}", **look)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(0, None)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_formatter("{x:.3g} %")
    ax.set_xlabel(histogram.of, labelpad=7)
    _name(ax, "share of rows")


def _draw_gain(ax: Axes, gain: Gain) -> None:
    """The summed gain as a line from nothing."""
    ranks, totals = np.array([0, *gain.rank]), np.array([0.0, *gain.total])
    ax.plot(ranks, totals, color=SERIES[0], linewidth=2.2, zorder=3, gid="plot-gain")
    ax.set_xlim(0, ranks[-1])
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_formatter("{x:.4g}")
    ax.set_xlabel("rank", labelpad=7)
    _name(ax, "gain of the picks so far")


def _name(ax: Axes, name: str) -> None:
    """The vertical axis's name, above it."""
    ax.annotate(
        name,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 12),
        textcoords="offset points",
        color=MUTED,
    )
