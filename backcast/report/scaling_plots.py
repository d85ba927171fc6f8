"""Where n* lies and which floors and exponents explain a curve, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.interpolate import RectBivariateSpline

from backcast.report.inverse import Density, Inverse, Pairs
from backcast.report.plots import (
    BOTTOM,
    INK,
    LINE,
    MARKERS,
    MUTED,
    NARROW,
    PAPER,
    RIGHT,
    SERIES,
    WIDE,
    Frame,
    inline_svg,
)

#: A density's row, how much of it the highest point takes, and the space above all rows.
ROW, FULL, HEAD = 64, 0.8, 26
#: The column of P(n* = ∞), wide and narrow.
NEVER = (92, 64)
#: Panels of pairs next to each other, wide and narrow; a panel's height, its outline's left, and its title's height.
ACROSS, PANEL, GAP, TITLE = (3, 1), 262, 58, 38
#: How much finer than its nodes a likelihood is drawn, and below how many times the last region's drop it is cut off.
FINER, CUT = 5, 4.0
#: Opacities of nested regions, the outermost first; each lies on those around it.
TINTS = (0.16, 0.18, 0.22, 0.28)


def inverse_svgs(inverse: Inverse, selectors: Sequence[str]) -> dict[str, list[Markup]]:
    """``density`` and, where there are any, ``pairs``: each wide and narrow.

    A selector's place in ``selectors`` gives its colour and its marker. The same numbers give the same bytes.
    """
    place = {name: i for i, name in enumerate(selectors)}
    found = {"density": [Markup(density_svg(inverse.densities, place, frame)) for frame in (WIDE, NARROW)]}
    if inverse.pairs:
        found["pairs"] = [Markup(pairs_svg(inverse.pairs, place, frame)) for frame in (WIDE, NARROW)]
    return found


def density_svg(densities: Sequence[Density], place: dict[str, int], frame: Frame) -> str:
    """A row an answer: the density of n*, dashed where the runs end, and P(n* = ∞) as a bar at the right."""
    return inline_svg(lambda: _densities(densities, place, frame), frame.font, salt=f"density {frame.width}")


def pairs_svg(pairs: Sequence[Pairs], place: dict[str, int], frame: Frame) -> str:
    """A panel a curve: nested regions of the (exponent, floor) pairs that explain it, and the best one."""
    return inline_svg(lambda: _panels(pairs, place, frame), frame.font, salt=f"pairs {frame.width}")


# ------------------------------------------------------------------ n*


def _densities(densities: Sequence[Density], place: dict[str, int], frame: Frame) -> Figure:
    never = NEVER[frame is not WIDE]
    rows = ROW * len(densities)
    height = HEAD + rows + BOTTOM
    figure = Figure(figsize=(frame.width / 72, height / 72))

    def axes(left: float, width: float) -> Axes:
        return figure.add_axes(
            (left / frame.width, BOTTOM / height, width / frame.width, rows / height),
            ylim=(-len(densities), 0),
            yticks=[],
        )

    main = axes(frame.left, frame.width - frame.left - RIGHT - never)
    side = axes(frame.width - RIGHT - 0.72 * never, 0.72 * never)
    ends = [n for d in densities for n in (d.n[0], d.n[-1])]
    main.set(xscale="log", xlim=(min(ends), max(ends)))
    main.set_xlabel("n*, training examples (log scale)", labelpad=7)
    _log_ticks(main, 4.5 * frame.font / (frame.width - frame.left - RIGHT - never))
    side.set(xlim=(0, 1), xticks=[])
    for ax in (main, side):
        ax.tick_params(length=0, pad=7)
    _head(main, 0.0, "left", "where n* lies")
    _head(side, 0.5, "center", "never")
    several = len({d.target for d in densities}) > 1
    for row, density in enumerate(densities):
        i = place[density.selector]
        _draw_density(main, density, row, SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)], several)
        _draw_never(side, density.never, row, SERIES[i % len(SERIES)])
    return figure


def _draw_density(ax: Axes, density: Density, row: int, colour: str, marker: str, named: bool) -> None:
    base, top = -row - 1, max(density.density) or 1.0
    n, finite = np.array(density.n), 1.0 - density.never
    heights = base + FULL * finite * np.array(density.density) / top
    ax.axhline(base, color=LINE, linewidth=0.8)
    ax.fill_between(n, base, heights, color=colour, alpha=0.18, linewidth=0, zorder=2)
    ax.plot(n, heights, color=colour, linewidth=1.8, zorder=3, gid=f"plot-density-{row}")
    if n[0] < density.n_max < n[-1]:
        ax.plot([density.n_max] * 2, [base, base + 0.92], color=MUTED, linewidth=1.1, dashes=(4.0, 3.0))
    ax.plot(
        -0.022,
        base + 0.5,
        marker,
        color=colour,
        markersize=9,
        transform=ax.get_yaxis_transform(),
        clip_on=False,
    )
    if named:
        ax.annotate(
            f"target {density.target:.4g}",
            (1, base + 0.8),
            xycoords=ax.get_yaxis_transform(),
            ha="right",
            va="center",
            color=INK,
            zorder=6,
        )


def _draw_never(ax: Axes, share: float, row: int, colour: str) -> None:
    base = -row - 1
    ax.axhline(base, color=LINE, linewidth=0.8)
    ax.bar(0.25, FULL, 0.3, base, color=LINE, alpha=0.6, linewidth=0)
    ax.bar(0.25, FULL * share, 0.3, base, color=colour, alpha=0.75, linewidth=0, gid=f"plot-never-{row}")
    ax.annotate(f"{100 * share:.0f} %", (0.5, base + 0.4), va="center", color=INK)


# ------------------------------------------------------------------ floor and exponent


def _panels(pairs: Sequence[Pairs], place: dict[str, int], frame: Frame) -> Figure:
    across = min(ACROSS[frame is not WIDE], len(pairs))
    deep = -(-len(pairs) // across)
    inner = frame.width / (max(across, 2) if frame is WIDE else 1)  # a lone panel is no wider than one of two
    height = deep * PANEL
    figure = Figure(figsize=(frame.width / 72, height / 72))
    for i, each in enumerate(pairs):
        down, right = divmod(i, across)
        ax = figure.add_axes(
            (
                (right * inner + GAP) / frame.width,
                ((deep - 1 - down) * PANEL + BOTTOM) / height,
                (inner - GAP - RIGHT) / frame.width,
                (PANEL - BOTTOM - TITLE) / height,
            )
        )
        where = place[each.selector]
        _draw_pairs(ax, each, i, SERIES[where % len(SERIES)], MARKERS[where % len(MARKERS)])
    return figure


def _draw_pairs(ax: Axes, pairs: Pairs, number: int, colour: str, marker: str) -> None:
    exponents, floors, likelihood = _smooth(pairs)
    ax.set(xscale="log", xlim=exponents[[0, -1]], ylim=floors[[0, -1]])
    for (_, drop), tint in zip(reversed(pairs.regions), TINTS, strict=False):
        ax.contourf(
            exponents, floors, likelihood, levels=[-drop, np.inf], colors=[colour], alpha=tint, zorder=2
        )
    outline = ax.contour(
        exponents,
        floors,
        likelihood,
        levels=[-pairs.regions[-1][1]],
        colors=[colour],
        linewidths=1.5,
        linestyles="solid",
        zorder=3,
    )
    outline.set_gid(f"plot-region-{number}")
    ax.patch.set_gid(f"plot-panel-{number}")
    edge: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 1.3, "clip_on": False}
    ax.plot(
        pairs.best[1],
        pairs.best[0],
        marker,
        color=colour,
        markersize=8.5,
        zorder=5,
        gid=f"plot-pair-{number}",
        **edge,
    )
    _log_ticks(ax, 0.2, digits=2)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.grid(linewidth=0.8)
    ax.tick_params(length=0, pad=6)
    ax.set_xlabel(f"exponent, {pairs.form} (log scale)", labelpad=5)
    ax.annotate(
        "ceiling" if pairs.higher_is_better else "floor",
        (0, 1),
        xycoords="axes fraction",
        xytext=(-GAP + 10, 14),
        textcoords="offset points",
        color=MUTED,
    )


def _smooth(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exponents, floors and log likelihoods at `FINER` times as many nodes, by cubic splines.

    Far below the regions' ends the likelihood is cut off, or its drop there would make waves here.
    """
    exponents, floors = np.log(pairs.exponents), np.array(pairs.floors)
    likelihood = np.maximum(pairs.log_likelihood, -CUT * pairs.regions[-1][1])
    fine = [np.linspace(each[0], each[-1], FINER * len(each)) for each in (exponents, floors)]
    if min(np.diff(exponents).min(), np.diff(floors).min()) <= 0 or min(likelihood.shape) < 4:
        return np.exp(exponents), floors, likelihood
    spline = RectBivariateSpline(floors, exponents, likelihood)
    return np.exp(fine[0]), fine[1], spline(fine[1], fine[0])


# ------------------------------------------------------------------ what both need


def _head(ax: Axes, x: float, side: str, words: str) -> None:
    ax.annotate(
        words,
        (x, 1),
        xycoords="axes fraction",
        xytext=(0, 8),
        textcoords="offset points",
        ha=side,
        color=MUTED,
    )


def _log_ticks(ax: Axes, gap: float, digits: int = 10) -> None:
    """Round numbers on a logarithmic axis, at least ``gap`` of it apart."""
    left, right = ax.get_xlim()
    for subs in ((1.0, 2.0, 3.0, 5.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [n for n in LogLocator(subs=subs, numticks=50).tick_values(left, right) if left <= n <= right]
        places = np.log(ticks) / np.log(right / left)
        if len(ticks) < 2 or np.diff(places).min() >= gap:
            break
    ticks = ticks[:: math.ceil(len(ticks) * gap) or 1]
    if len(ticks) < 2:
        ticks = np.exp(np.log(left) + np.log(right / left) * np.array([0.12, 0.5, 0.88])).tolist()
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.{digits}g}"))
    ax.xaxis.set_minor_locator(NullLocator())
