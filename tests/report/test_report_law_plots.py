"""What the plot of several laws shows, read back from its file."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from backcast.errors import InputError
from backcast.report.law_plots import DPI, SIZE, write_laws_plot
from backcast.scaling import compare_laws, fit_law

SIZES = (50, 100, 200)
CURVES = {"image-driven": 0.6, "text-driven": 0.3}


@cache
def given(bounded: bool = True) -> tuple:
    rng = np.random.default_rng(0)
    rows = [
        {"selector": s, "n": n, "seed": seed, "measure": "loss", "metric": n**-b + 0.005 * rng.normal()}
        for s, b in CURVES.items()
        for n in SIZES
        for seed in range(2)
    ]
    bounds = (0, math.inf) if bounded else None
    laws = fit_law(rows, group="selector", bounds=bounds, laws=["power"])
    full = {"selector": "full", "n": 1000, "seed": 0, "measure": "loss", "metric": 0.9}
    return [*rows, full], laws, compare_laws(laws)


class Plot:
    """A plot's marks and words, in its own coordinates."""

    def __init__(self, path: Path) -> None:
        self.root = ElementTree.fromstring(path.read_text().replace("xlink:href", "href"))

    @staticmethod
    def _name(element: ElementTree.Element) -> str:
        return element.tag.rpartition("}")[2]

    def marks(self, name: str) -> list[np.ndarray]:
        """(m, 2) places of the markers of each group of this name."""
        groups = [g for g in self.root.iter() if g.get("id") == name]
        return [
            np.array(
                [(float(u.attrib["x"]), float(u.attrib["y"])) for u in g.iter() if self._name(u) == "use"]
            )
            for g in groups
        ]

    def words(self) -> list[str]:
        return [t.text or "" for t in self.root.iter() if self._name(t) == "text"]


def test_means_and_estimates_are_where_they_belong(tmp_path: Path) -> None:
    rows, laws, comparison = given()
    plot = Plot(write_laws_plot(tmp_path / "laws.svg", rows, laws, comparison))
    places = {name: plot.marks(f"means-{place}")[0] for place, name in enumerate(CURVES)}
    means = {
        name: [np.mean([r["metric"] for r in rows if (r["selector"], r["n"]) == (name, n)]) for n in SIZES]
        for name in CURVES
    }
    x, y = np.concatenate(list(places.values())).T
    assert np.corrcoef(x, np.log(SIZES * 2))[0, 1] == pytest.approx(1, abs=1e-9)
    assert np.corrcoef(y, np.concatenate(list(means.values())))[0, 1] == pytest.approx(-1, abs=1e-9)

    for panel, found in enumerate((comparison.exponents, comparison.slopes)):
        marks = [plot.marks(f"estimate-{place}")[panel][0] for place in range(2)]
        assert marks[0][0] > marks[1][0]  # 0.6 stands to the right of 0.3
        assert marks[0][1] < marks[1][1]  # and above it
        assert [e.median for e in found.values()] == sorted((e.median for e in found.values()), reverse=True)


def test_words_say_what_is_shown(tmp_path: Path) -> None:
    rows, laws, comparison = given()
    words = Plot(write_laws_plot(tmp_path / "laws.svg", rows, laws, comparison)).words()
    for name in CURVES:
        assert words.count(name) == 3  # the legend and two panels
    assert {"loss", "exponent", "slope of the error", "50", "100", "200"} <= set(words)
    assert {"median, 90 % interval,", "n = 50 to 200"} <= set(words)
    assert "full" not in words
    assert "1,000" not in words


def test_without_slopes_there_is_one_panel(tmp_path: Path) -> None:
    rows, laws, comparison = given(bounded=False)
    plot = Plot(write_laws_plot(tmp_path / "laws.svg", rows, laws, comparison))
    assert len(plot.marks("estimate-0")) == 1
    assert "slope of the error" not in plot.words()


def test_a_flat_curve_is_named_and_keeps_the_colours_of_the_others(tmp_path: Path) -> None:
    rows, _, _ = given()
    flat = [{**row, "selector": "flat", "metric": 0.5 + 0.01 * (-1) ** row["seed"]} for row in rows[:6]]
    laws = fit_law([*flat, *rows[:-1]], group="selector", bounds=(0, math.inf), laws=["power"])
    plot = Plot(write_laws_plot(tmp_path / "laws.svg", [*flat, *rows], laws, compare_laws(laws)))
    assert plot.words().count("flat (flat)") == 1
    assert [len(plot.marks(f"estimate-{place}")) for place in range(3)] == [
        1,
        2,
        2,
    ]  # a slope, but no exponent
    assert [len(plot.marks(f"means-{place}")) for place in range(3)] == [1, 1, 1]


def test_files_are_reproducible_and_whole(tmp_path: Path) -> None:
    for name in ("laws.svg", "laws.png"):
        one, other = (write_laws_plot(tmp_path / folder / name, *given()) for folder in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()
    with Image.open(tmp_path / "a" / "laws.png") as picture:
        assert picture.size == (round(SIZE[0] * DPI), round(SIZE[1] * DPI))
    assert not re.search(r"<dc:date>", (tmp_path / "a" / "laws.svg").read_text())


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"laws\.jpg: a plot is written as \.png or \.svg"):
        write_laws_plot(tmp_path / "laws.jpg", *given())
    assert not list(tmp_path.iterdir())
