"""Laws set against each other, as one picture that stands alone: the curves, and beside them how fast they fall."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from backcast.errors import InputError
from backcast.files import write_atomic
from backcast.report.plots import MARKERS
from backcast.scaling import Comparison, Law
from backcast.scaling.exponents import Estimate

#: The page's colours on a light ground (style.css), as a file has no page to take them from.
INK, MUTED, LINE, PAPER = "#1b1d22", "#62656e", "#e3e0d8", "#ffffff"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b5559b", "#b88a00", "#3a3d45")

SIZE, DPI = (11.0, 4.6), 160
FORMATS = (".png", ".svg")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "laws",
    "text.parse_math": False,
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.facecolor": PAPER,
    "grid.color": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def write_laws_plot(
    path: str | Path, rows: Sequence[Mapping[str, Any]], laws: Mapping[str, Law], comparison: Comparison
) -> Path:
    """Draw the laws with their runs, and their exponents and slopes with intervals, into one PNG or SVG file.

    Small dots are runs, markers their means; a line and its band are the posterior mean and the central interval of the
    comparison's level. The same runs give the same bytes.

    Args:
        path: the file; its ending says the format.
        rows: a sweep's table: selector, n, metric, measure; rows of selectors without a law are left out.
        laws: by selector.
        comparison: of these laws, by `compare_laws`.

    Raises:
        InputError: a file that is neither PNG nor SVG.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: a plot is written as {' or '.join(FORMATS)}; give a name that ends so")
    file = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        vector = path.suffix.lower() == ".svg"
        _figure(rows, laws, comparison).savefig(
            file, format=path.suffix[1:].lower(), dpi=DPI, metadata={"Date": None} if vector else None
        )
    write_atomic(path, file.getvalue())
    return path


def _figure(rows: Sequence[Mapping[str, Any]], laws: Mapping[str, Law], comparison: Comparison) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    columns = figure.add_gridspec(1, 2, width_ratios=(1.7, 1), wspace=0.06)
    _draw_laws(figure.add_subplot(columns[0]), rows, laws, comparison.level)
    shown = {"exponent": comparison.exponents}
    if comparison.slopes:
        shown["slope of the error"] = comparison.slopes
    stack = columns[1].subgridspec(len(shown), 1)
    sure = f"median, {100 * comparison.level:.0f} % interval,\nn = {comparison.low:,.10g} to {comparison.high:,.10g}"
    for place, (name, found) in enumerate(shown.items()):
        ax = figure.add_subplot(stack[place])
        ax.set_title(name, color=INK)
        _draw_estimates(ax, list(laws), found)
    ax.set_xlabel(sure)
    return figure


def _draw_laws(ax: Axes, rows: Sequence[Mapping[str, Any]], laws: Mapping[str, Law], level: float) -> None:
    ends = [law.budgets.n[[0, -1]] for law in laws.values()]
    ticks = sorted({n for law in laws.values() for n in law.budgets.n.tolist()})
    ax.set(xscale="log", xlim=(np.min(ends) / 1.15, np.max(ends) * 1.15))
    for place, (name, law) in enumerate(laws.items()):
        look: dict[str, Any] = {"color": SERIES[place % len(SERIES)]}
        n = np.geomspace(law.budgets.n[0], law.budgets.n[-1], 65)
        seen = law.predict(n, ((1 - level) / 2, (1 + level) / 2))
        ax.fill_between(n, *seen.quantiles, alpha=0.13, linewidth=0, zorder=2, **look)
        ax.plot(n, seen.mean, linewidth=2, zorder=4, **look)
        runs = np.array([(row["n"], row["metric"]) for row in rows if row["selector"] == name])
        ax.plot(*runs.T, ".", alpha=0.5, markersize=5, markeredgewidth=0, zorder=3, **look)
        sizes = np.unique(runs[:, 0])
        means = [runs[runs[:, 0] == size, 1].mean() for size in sizes]
        marker = MARKERS[place % len(MARKERS)]
        edge: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 1.0}
        ax.plot(
            sizes, means, marker, markersize=7, zorder=5, label=name, gid=f"means-{place}", **look, **edge
        )
    ax.set_xticks(ticks, [f"{n:,.10g}" for n in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="y", linewidth=1)
    ax.tick_params(length=0, pad=6)
    ax.set_xlabel("training examples (log scale)")
    ax.set_title(str(rows[0]["measure"]), color=INK)
    ax.legend(frameon=False, handletextpad=0.2)


def _draw_estimates(ax: Axes, names: Sequence[str], found: Mapping[str, Estimate]) -> None:
    """A row a curve: the median and its interval, where there is one."""
    for place, name in enumerate(names):
        if name not in found:
            continue
        estimate, y = found[name], -place
        colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
        ax.plot(
            [estimate.low, estimate.high],
            [y, y],
            color=colour,
            alpha=0.35,
            linewidth=6,
            solid_capstyle="butt",
        )
        ax.plot(
            estimate.median,
            y,
            marker,
            color=colour,
            markersize=7.5,
            markeredgecolor=PAPER,
            markeredgewidth=1.0,
            gid=f"estimate-{place}",
        )
    labels = [name if name in found else f"{name} (flat)" for name in names]
    ax.set_yticks([-place for place in range(len(names))], labels, color=INK)
    ax.set_ylim(0.6 - len(names), 0.6)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="x", linewidth=1)
    ax.tick_params(length=0, pad=6)
