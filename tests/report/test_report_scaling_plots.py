"""The page of an inversion: densities and pairs to scale, every number on it, escaped, self-contained."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pydantic import ValidationError
from test_report_browser import CHROMIUM, measure
from test_report_page import Page, hostile

from backcast.report import Answer, Curves, Observation, Report, render
from backcast.report.inverse import Density, Inverse, Pairs, Same, Source
from backcast.report.plots import NARROW, WIDE, Frame
from backcast.report.scaling_plots import FULL, density_svg, inverse_svgs, pairs_svg

N = np.geomspace(50, 20_000, 41)
CENTRES = {"random": 3000.0, "quota": 300.0}
PLACE = {name: i for i, name in enumerate(CENTRES)}
FLOORS, EXPONENTS = np.linspace(0.7, 1.0, 9), np.geomspace(0.2, 0.8, 9)


def density(name: str, never: float, target: float = 0.8) -> Density:
    heights = (1 - never) * np.exp(-0.5 * (np.log(N / CENTRES[name]) / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    return Density(
        selector=name, target=target, n=N.tolist(), density=heights.tolist(), never=never, n_max=800
    )


def pairs(name: str) -> Pairs:
    """A paraboloid around (0.85, 0.4)."""
    log_b = np.log(EXPONENTS / 0.4) / 0.3
    return Pairs(
        selector=name,
        form="hill",
        higher_is_better=True,
        floors=FLOORS.tolist(),
        exponents=EXPONENTS.tolist(),
        log_likelihood=(-2 * (((FLOORS[:, None] - 0.85) / 0.06) ** 2 + log_b**2)).tolist(),
        best=(0.85, 0.4),
        regions=[(0.5, 0.7), (0.9, 2.3)],
        sentence=f"Many pairs explain {name}.",
    )


@pytest.fixture
def report() -> Report:
    observed = [
        Observation(selector=name, n=n, seed=0, metric=0.1 * i + n / 2000)
        for i, name in enumerate(CENTRES)
        for n in (200, 800)
    ]
    answers = [
        Answer(
            selector=name,
            target=0.8,
            n=CENTRES[name],
            low=100,
            high=None,
            p_unreachable=0.1,
            status="extrapolated",
            sentence=f"{name}: so much.",
        )
        for name in CENTRES
    ]
    inverse = Inverse(
        densities=[density("random", 0.25), density("quota", 0.0)],
        pairs=[pairs(name) for name in CENTRES],
        same=[
            Same(
                target=0.8,
                tolerance=0.0123,
                sources=[
                    Source(selector="quota", p=1.0, n=300, low=251.7, high=None),
                    Source(selector="random", p=0.04, n=None, low=None, high=None),
                ],
                sentence="The score alone does not tell the data.",
            )
        ],
        savings=["quota saves 90 %."],
        warnings=[("random", "It has levelled off.")],
    )
    curves = Curves(metric="accuracy", higher_is_better=True, target=0.8, observed=observed, answers=answers)
    return Report(title="results.csv", answer=["So much."], curves=curves, inverse=inverse)


def test_every_number_is_on_the_page(report, tmp_path):
    page = Page(render(report, tmp_path))
    for said in [
        "How sure",
        "random It has levelled off.",
        "pairs of ceiling and exponent",
        "Nested regions of probability 50, 90 %",
        "In words random Many pairs explain random. quota Many pairs explain quota.",
        "Amounts of data that give 0.8 ± 0.012 curve gives it n from to quota 100 % 300 252 – random 4 % – – –",
        "The score alone does not tell the data.",
        "quota saves 90 %.",
    ]:
        assert said in page.text
    assert [s["id"] for s in page.all("section")] == ["curves", "density", "pairs", "same", "savings"]
    assert not re.search(r"\b(inf|nan|None|null)\b", page.text)


def test_what_is_not_known_has_no_section(report, tmp_path):
    bare = report.model_copy(update={"inverse": Inverse(densities=report.inverse.densities)})
    page = Page(render(bare, tmp_path))
    assert [s["id"] for s in page.all("section")] == ["curves", "density"]


def test_every_text_is_escaped(report, tmp_path):
    payloads: dict[str, str] = {}
    page = Page(render(Report.model_validate(hostile(report.model_dump(mode="json"), payloads)), tmp_path))
    assert len(payloads) > 10
    readable = page.text + " ".join(value for _, a in page.elements for value in a.values())
    assert [text for text, payload in payloads.items() if payload not in readable] == []
    assert not page.all("script")
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_nothing_comes_from_elsewhere_and_the_bytes_stay(report, tmp_path):
    html = render(report, tmp_path)
    page = Page(html)
    links = [a[name] for _, a in page.elements for name in ("src", "href", "xlink:href") if name in a]
    assert all(link.startswith(("data:", "#")) for link in links)
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert max(ids.values()) == 1
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', html)) <= set(ids)
    assert render(Report.model_validate_json(report.model_dump_json()), tmp_path) == html


# ------------------------------------------------------------------ the plots


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


def group(root: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(g for g in root.iter() if g.get("class") == f"plot-{name}")


def points(root: ElementTree.Element, name: str) -> np.ndarray:
    """The corners of a line in pixels."""
    found = re.findall(r"[ML] (\S+) (\S+)", next(group(root, name).iter("path")).attrib["d"])
    return np.array(found, dtype=float)


@pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_density_peaks_where_it_does_and_as_high_as_n_is_finite(frame: Frame):
    densities = [density("random", 0.25), density("quota", 0.0)]
    root = drawn(density_svg(densities, PLACE, frame))
    peaks = {}
    for row, each in enumerate(densities):
        x, y = points(root, f"density-{row}").T
        peak = y.argmin()
        place = (x[peak] - x[0]) / (x[-1] - x[0])
        assert place == pytest.approx(np.log(CENTRES[each.selector] / N[0]) / np.log(N[-1] / N[0]), abs=0.02)
        peaks[each.selector] = y.max() - y.min()
    assert peaks["random"] / peaks["quota"] == pytest.approx(0.75, abs=0.01)
    bar = points(root, "never-0")
    assert np.ptp(bar[:, 1]) / peaks["quota"] == pytest.approx(0.25, abs=0.01)
    assert {"25 %", "0 %"} <= {t.text for t in root.iter("text")}
    assert not [t.text for t in root.iter("text") if "target" in (t.text or "")]
    assert FULL < 1


def test_rows_name_their_targets_where_there_are_several():
    root = drawn(density_svg([density("random", 0.25), density("random", 0.5, 0.85)], PLACE, WIDE))
    assert {"target 0.8", "target 0.85"} <= {t.text for t in root.iter("text")}


@pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_outermost_region_is_as_large_as_its_drop(frame: Frame):
    """-2((c - 0.85)²/0.06² + ...) = -2.3: the floors' half width is 0.06 · √1.15, of a range of 0.3."""
    root = drawn(pairs_svg([pairs("random"), pairs("quota")], PLACE, frame))
    (best,) = list(group(root, "pair-0").iter("use"))
    outline = points(root, "region-0")
    x, y = (float(best.attrib[k]) for k in "xy")
    panel = points(root, "panel-0")
    high, wide = np.ptp(panel[:, 1]), np.ptp(panel[:, 0])
    assert np.ptp(outline[:, 1]) / high == pytest.approx(2 * 0.06 * np.sqrt(1.15) / 0.3, rel=0.03)
    assert np.ptp(outline[:, 0]) / wide == pytest.approx(2 * 0.3 * np.sqrt(1.15) / np.log(4), rel=0.03)
    assert x - panel[:, 0].min() == pytest.approx(wide * np.log(0.4 / 0.2) / np.log(4), abs=0.5)
    assert panel[:, 1].max() - y == pytest.approx(high * 0.5, abs=0.5)
    assert [t.text for t in root.iter("text")].count("ceiling") == 2


def test_a_flat_likelihood_and_a_lone_panel_are_drawn():
    flat = pairs("random").model_copy(update={"log_likelihood": [[0.0] * 9] * 9})
    assert "ceiling" in pairs_svg([flat], PLACE, WIDE)
    never = Density(selector="random", target=0.9, n=[50, 800], density=[0, 0], never=1, n_max=800)
    assert "100 %" in density_svg([never], PLACE, NARROW)


def test_every_plot_is_there_wide_and_narrow(report):
    found = inverse_svgs(report.inverse, report.curves.selectors)
    assert {name: len(each) for name, each in found.items()} == {"density": 2, "pairs": 2}


# ------------------------------------------------------------------ the data behind it


@pytest.mark.parametrize(
    ("kind", "value", "change"),
    [
        (Density, density("random", 0.5), {"density": [1.0]}),
        (Pairs, pairs("random"), {"log_likelihood": [[0.0] * 9]}),
        (Pairs, pairs("random"), {"regions": []}),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(kind: Any, value: Any, change: dict[str, Any]):
    with pytest.raises(ValidationError):
        kind(**{**value.model_dump(), **change})


def test_an_inversion_is_of_the_curves_on_the_page(report):
    with pytest.raises(ValidationError, match="inverse must be of the selectors of curves"):
        Report(title="A", answer=["B"], inverse=report.inverse)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_fits_the_screen(report, width, tmp_path):
    seen = measure(render(report, tmp_path), tmp_path, width)
    assert seen["content"] <= width
    shown, hidden = ("wide", "narrow") if width == 1200 else ("narrow", "wide")
    assert seen[hidden] == [[0, 0]] * 3
    assert all(size[0] > 0.8 * width and size[1] > 100 for size in seen[shown])
