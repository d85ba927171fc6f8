"""Learning curves as inline SVG in the page's own colours, and what any such plot needs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from backcast.report.document import Answer, Curves, Fitted

#: Stand-ins that a plot is drawn in; its SVG names the page's variables in their place, and so follows the page from
#: light to dark.
INK, MUTED, LINE, PAPER = "#010101", "#010102", "#010103", "#010104"
#: Colours of the selectors by their place, and shapes, so that colour is never the only difference.
SERIES = tuple(f"#0202{place:02x}" for place in range(6))
MARKERS, GLYPHS = "os^DvP", "●■▲◆▼✚"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--card"} | {
    colour: f"--s{place}" for place, colour in enumerate(SERIES)
}

#: How far past the last run the n axis may go to show an answer.
REACH = 8.0
#: An n axis that spans more than this factor is logarithmic.
LOG_SPAN = 6.0


class Frame(NamedTuple):
    """A plot's outline in pixels, and its type size; screens too narrow for `WIDE` show `NARROW`."""

    width: int
    height: int
    left: int
    font: int


WIDE, NARROW = Frame(1000, 400, 52, 14), Frame(380, 300, 40, 12)
TOP, RIGHT, BOTTOM, ROW = 12, 16, 54, 28


class _Axis(NamedTuple):
    """The n axis."""

    left: float
    right: float
    log: bool

    def place(self, n: float) -> float:
        """Where n lies: 0 at the left end, 1 at the right end."""
        if self.log:
            return float(np.log(n / self.left) / np.log(self.right / self.left))
        return (n - self.left) / (self.right - self.left)

    def at(self, place: float) -> float:
        """The n that lies there."""
        if self.log:
            return float(self.left * (self.right / self.left) ** place)
        return self.left + place * (self.right - self.left)


def curves_svg(curves: Curves, frame: Frame = WIDE) -> str:
    """Learning curves over n and, in rows below them on the same axis, every answer n* with its interval.

    Small dots are runs, markers their means; a line and its band are the fitted curve, dashed past the
    runs that it was fitted to. The same curves give the same bytes.
    """
    return inline_svg(lambda: _figure(curves, frame), frame.font, salt=f"curves {frame.width}")


def _figure(curves: Curves, frame: Frame) -> Figure:
    rows = ROW * len(curves.answers)
    width, height = frame.width - frame.left - RIGHT, TOP + frame.height + rows + BOTTOM
    figure = Figure(figsize=(frame.width / 72, height / 72))

    def axes(bottom: float, tall: float) -> Axes:
        return figure.add_axes(
            (frame.left / frame.width, bottom / height, width / frame.width, tall / height)
        )

    main = axes(BOTTOM + rows, frame.height)
    lower = axes(BOTTOM, rows) if rows else main
    axis = _axis(curves)
    for ax in figure.axes:
        ax.set(xscale="log" if axis.log else "linear", xlim=(axis.left, axis.right))
        ax.set_xticks([])
        ax.set_xticks([], minor=True)
        ax.tick_params(length=0, pad=7)
    ticks = _ticks(curves, axis, gap=4.5 * frame.font / width)
    lower.set_xticks(ticks, [f"{n:,.10g}" for n in ticks])
    lower.set_xlabel("training examples" + (" (log scale)" if axis.log else ""), labelpad=7)
    _draw_curves(main, curves, axis)
    _draw_levels(main, curves)
    if rows:
        _draw_answers(main, lower, curves, axis)
    return figure


def _style(font: int) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": font,
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "none",
        "grid.color": LINE,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
    }


def _axis(curves: Curves) -> _Axis:
    """Every run, and the answers as far as `REACH`."""
    runs = [o.n for o in curves.observed]
    ends = [n for a in curves.answers for n in (a.n if a.found else None, a.low, a.high)]
    shown = runs + [n for n in ends if n is not None and min(runs) / 2 <= n <= max(runs) * REACH]
    left, right = min(shown) / 1.15, max(shown) * 1.15
    return _Axis(left, right, right / left > LOG_SPAN)


def _ticks(curves: Curves, axis: _Axis, gap: float) -> list[float]:
    """The budgets that were run and doublings past the last, at least ``gap`` of the axis apart."""
    runs = sorted({o.n for o in curves.observed}, reverse=True)
    kept: list[float] = []
    for n in runs + [runs[0] * 2**i for i in range(1, 4)]:
        if n < axis.right and all(abs(axis.place(n) - axis.place(other)) >= gap for other in kept):
            kept.append(n)
    return sorted(kept)


def _draw_curves(ax: Axes, curves: Curves, axis: _Axis) -> None:
    last = max(o.n for o in curves.observed)
    heights = [o.metric for o in curves.observed]
    heights += [value for value in (curves.target, curves.full) if value is not None]
    heights += [answer.target for answer in curves.answers]
    fitted = {curve.selector: curve for curve in curves.fitted}
    for place, selector in enumerate(curves.selectors):
        colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
        if curve := fitted.get(selector):
            n, mean = np.array(curve.n), np.array(curve.mean)
            _draw_fit(ax, curve, curve.upto or last, colour)
            heights += mean[(n >= axis.left) & (n <= axis.right)].tolist()
        runs = np.array([(o.n, o.metric) for o in curves.observed if o.selector == selector]).reshape(-1, 2)
        budgets = np.unique(runs[:, 0])
        means = [runs[runs[:, 0] == budget, 1].mean() for budget in budgets]
        ax.plot(*runs.T, ".", color=colour, alpha=0.5, markersize=6, markeredgewidth=0, zorder=3)
        ax.plot(
            budgets,
            means,
            color=colour,
            marker=marker,
            markersize=8,
            markeredgecolor=PAPER,
            markeredgewidth=1.2,
            linestyle="none" if selector in fitted else "-",
            linewidth=1.6,
            zorder=5,
            gid=f"plot-means-{place}",
        )
    low, high = min(heights), max(heights)
    margin = 0.08 * (high - low or abs(high) or 1.0)
    ax.set_ylim(low - margin, high + margin)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="y", linewidth=1)


def _draw_fit(ax: Axes, curve: Fitted, upto: float, colour: str) -> None:
    """The band and the line, dashed past ``upto``."""
    n, mean = np.array(curve.n), np.array(curve.mean)
    ax.fill_between(n, curve.low, curve.high, color=colour, alpha=0.11, linewidth=0, zorder=2)
    turn = int((n <= upto).sum())
    ax.plot(n[:turn], mean[:turn], color=colour, linewidth=2.2, zorder=4)
    ahead = slice(max(turn - 1, 0), None)  # from the solid line's end, so that no gap is left
    ax.plot(n[ahead], mean[ahead], color=colour, linewidth=2.2, dashes=(2.5, 1.5), zorder=4)


def _draw_levels(ax: Axes, curves: Curves) -> None:
    """The target and the full pool as lines across, named at the left, where curves that improve leave room."""
    levels = [("target", curves.target, (5.0, 3.0)), ("full pool", curves.full, (1.0, 2.0))]
    known = [(value, name, dashes) for name, value, dashes in levels if value is not None]
    for place, (value, name, dashes) in enumerate(sorted(known, reverse=True)):
        ax.axhline(value, color=INK, linewidth=1.2, dashes=dashes, zorder=3)
        ax.annotate(
            f"{name} {value:.4g}",
            (0, value),
            xycoords=ax.get_yaxis_transform(),
            xytext=(4, -5 if place else 5),
            textcoords="offset points",
            va="top" if place else "bottom",
            zorder=6,
        )


def _draw_answers(main: Axes, rows: Axes, curves: Curves, axis: _Axis) -> None:
    """A row for every answer: the selector's marker, the interval, n*; and the way down to it from the target."""
    rows.set(ylim=(-len(curves.answers), 0), yticks=[])
    for row, answer in enumerate(curves.answers):
        y = -row - 0.5
        place = curves.selectors.index(answer.selector)
        colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
        dot: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 9, "linestyle": "none"}
        rows.plot(-0.022, y, transform=rows.get_yaxis_transform(), clip_on=False, **dot)
        rows.axhline(-row, color=LINE, linewidth=0.8)
        _draw_interval(rows, answer, axis, y, colour)
        if answer.found and answer.n and axis.left <= answer.n <= axis.right:
            way: dict[str, Any] = {"color": colour, "linewidth": 1.3, "dashes": (1.0, 1.6), "zorder": 3}
            main.plot([answer.n] * 2, [main.get_ylim()[0], answer.target], **way)
            rows.plot([answer.n] * 2, [0, y], **way)
            main.plot(
                answer.n, answer.target, "o", markersize=12, color="none", markeredgecolor=colour, zorder=6
            )
            edge: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 1.5}
            rows.plot(answer.n, y, zorder=5, gid=f"plot-answer-{row}", **dot, **edge)


def _draw_interval(ax: Axes, answer: Answer, axis: _Axis, y: float, colour: str) -> None:
    """The interval, with an arrow where it goes on past the axis, and the answer's words where there is room."""
    low, high = (np.inf if end is None else end for end in (answer.low, answer.high))
    start, end = np.clip((low, high), axis.left, axis.right)
    ax.plot([start, end], [y, y], color=colour, alpha=0.35, linewidth=7, solid_capstyle="butt")
    if low < axis.left:
        ax.plot(axis.left, y, "<", color=colour, markersize=7, clip_on=False)
    if high > axis.right:
        ax.plot(axis.right, y, ">", color=colour, markersize=7, clip_on=False)
    if axis.place(end) < 0.75:
        x, offset, side = end, 11, "left"
    elif axis.place(start) > 0.25:
        x, offset, side = start, -11, "right"
    else:
        x, offset, side = axis.at(0.5), 0, "center"
    words = f"n* {answer.words}" if answer.found else answer.words
    ax.annotate(
        words,
        (x, y),
        xytext=(offset, 0),
        textcoords="offset points",
        ha=side,
        va="center",
        color=INK,
        zorder=6,
    )


# ------------------------------------------------------------------ from matplotlib's file to the page's element


def inline_svg(figure: Callable[[], Figure], font: int, salt: str) -> str:
    """The ``<svg>`` element of what ``figure`` draws, whatever the user's own settings.

    ``salt`` must be the plot's alone on the page. Elements with a gid that begins with "plot-" have it as their class.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_style(font))
        return _svg(figure(), salt)


def _svg(figure: Figure, salt: str) -> str:
    """An ``<svg>`` element that carries nothing of its own: no size, fonts, namespaces, metadata or global rules."""
    file = io.StringIO()
    # Clip paths and markers are named by a hash of the salt and their content: unique on the page, and reproducible.
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    body = file.getvalue().partition("</metadata>")[2].partition("</defs>")[2]
    body = re.sub(r' id="(plot-[^"]*)"', r' class="\1"', body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    for stand_in, variable in VARIABLES.items():
        body = body.replace(stand_in, f"var({variable})")
    width, height = figure.get_size_inches() * 72
    return f'<svg viewBox="0 0 {width:g} {height:g}" aria-hidden="true">{body}'
