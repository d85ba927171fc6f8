"""Image parts against text parts as inline SVG: which rows help or harm, and through what."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from backcast.report.document import Modality
from backcast.report.plots import (
    BOTTOM,
    LINE,
    MARKERS,
    MUTED,
    NARROW,
    RIGHT,
    SERIES,
    WIDE,
    Frame,
    inline_svg,
)

#: Above the axes, for the vertical one's name.
HEAD = 30
#: The axes end at this times the parts' 98th percentile, so that a few large ones leave the others apart.
BEYOND = 1.5
#: The six regions, between the axes and the line where the parts cancel: (does, through, place, alignment), the place
#: from −1 to 1 on each axis.
REGIONS = (
    ("helpful", "both", (1, 1), ("right", "top")),
    ("harmful", "both", (-1, -1), ("left", "bottom")),
    ("harmful", "the image alone", (-1, 0), ("left", "bottom")),
    ("helpful", "the image alone", (1, 0), ("right", "top")),
    ("helpful", "the text alone", (0, 1), ("right", "top")),
    ("harmful", "the text alone", (0, -1), ("left", "bottom")),
)


def parts_svg(modality: Modality, frame: Frame = WIDE) -> str:
    """The rows' image parts across and text parts up, by class, on one scale. The same rows give the same bytes."""
    return inline_svg(lambda: _figure(modality, frame), frame.font, salt=f"parts {frame.width}")


def _figure(modality: Modality, frame: Frame) -> Figure:
    width, height = frame.width - frame.left - RIGHT, HEAD + frame.height + BOTTOM
    figure = Figure(figsize=(frame.width / 72, height / 72))
    ax = figure.add_axes(
        (frame.left / frame.width, BOTTOM / height, width / frame.width, frame.height / height)
    )
    points = {name: np.reshape(places, (-1, 2)) for name, places in modality.points.items()}
    reach = _reach(np.concatenate([*points.values(), np.zeros((0, 2))]))
    _draw_regions(ax, reach, "\n" if frame == NARROW else " ")
    for place, name in enumerate(modality.driven):
        look: dict[str, Any] = {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)]}
        x, y = np.clip(points.get(name, np.zeros((0, 2))), -reach, reach).T
        ax.plot(
            x,
            y,
            linestyle="none",
            markersize=4.5,
            markeredgewidth=0,
            alpha=0.55,
            zorder=3,
            clip_on=False,
            gid=f"plot-parts-{place}",
            **look,
        )
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
    ax.set_xlabel("image's part", labelpad=7)
    ax.annotate(
        "text's part",
        (0, 1),
        xycoords="axes fraction",
        xytext=(4 - frame.left, 12),
        textcoords="offset points",
        color=MUTED,
    )
    return figure


def _reach(points: np.ndarray) -> float:
    """Where the axes end."""
    sizes = np.abs(points).max(axis=1, initial=0.0)
    if not sizes.any():
        return 1.0
    return float(min(1.05 * sizes.max(), BEYOND * np.quantile(sizes, 0.98) or np.inf))


def _draw_regions(ax: Axes, reach: float, space: str) -> None:
    ax.tick_params(length=0, pad=7)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, symmetric=True))
    ax.ticklabel_format(scilimits=(-2, 4))
    ax.axhline(0, color=LINE, linewidth=1.2)
    ax.axvline(0, color=LINE, linewidth=1.2)
    ax.plot([-reach, reach], [reach, -reach], color=MUTED, linewidth=1.2, dashes=(5.0, 3.0), zorder=2)
    for does, through, (x, y), (across, up) in REGIONS:
        ax.annotate(
            f"{does} through{space}{through}",
            (x * reach, y * reach),
            xytext=(6 if across == "left" else -6, 5 if up == "bottom" else -5),
            textcoords="offset points",
            ha=across,
            va=up,
            zorder=6,
        )
