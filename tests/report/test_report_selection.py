"""The page of one selection: every number on it, plots to scale, escaped, self-contained, fit for any screen."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from test_report_browser import CHROMIUM, measure
from test_report_page import Page, hostile

from backcast.report import Report, render
from backcast.report.choice import Choice, Cost, Gain, Gallery, Histogram, Mix, Nearness, Row, Summary
from backcast.report.plots import NARROW, WIDE
from backcast.report.selection_plots import selection_svg, selection_svgs

EDGES = [-1.0, 0.0, 0.5, 2.0]
POOL, SUBSET = [10, 30, 60], [0, 5, 15]


def summary(name: str, count: int = 100, mean: float = 0.25) -> Summary:
    return Summary(name=name, count=count, mean=mean, quantiles=(-0.5, 0.1, 0.3, 0.6, 0.9))


def histogram(of: str = "mean score", *names: str) -> Histogram:
    names = names or ("pool", "subset")
    return Histogram(
        of=of, edges=EDGES, counts=[POOL, SUBSET][-len(names) :], groups=[summary(n) for n in names]
    )


def near(of: str) -> Nearness:
    return Nearness(
        cosines=histogram(of, "random", "chosen"), random_means=[0.511, 0.522, 0.533], asked=(20, 1234)
    )


def choice(folder: Path) -> Choice:
    Image.new("RGB", (8, 8), "red").save(folder / "row-3.png")
    return Choice(
        made=[("method", "dedup | top_k"), ("seed", "7")],
        dropped=[("dedup", "near-duplicate", 1234)],
        sources=[Mix(source="web", pool=300, subset=5), Mix(source="books", pool=100, subset=15)],
        scores=[histogram(), histogram("score for maths")],
        gain=Gain(rank=[1, 5, 20], total=[0.5, 0.8, 0.9]),
        redundancy=near("cosine to the nearest other chosen row"),
        coverage=near("cosine to the nearest chosen row"),
        costs=[
            Cost(unit="examples", subset=20, pool=400),
            Cost(unit="tokens", subset=1500, limit=1600),
            Cost(unit="characters", subset=5000, pool=100_000, about=True),
        ],
        chosen=[
            Gallery(
                name="The first ranks",
                rows=[
                    Row(
                        row=3,
                        source="web",
                        rank=1,
                        score=0.5,
                        gain=-0.125,
                        text="a square",
                        image="row-3.png",
                    ),
                    Row(
                        row=9, source="web", rank=2, weight=2.5, cost=77, prompt="Two and two?", text="Four."
                    ),
                ],
            )
        ],
        left=[
            Gallery(
                name="The best",
                about="Passed over.",
                rows=[Row(row=5, source="web", note="dropped by dedup")],
            )
        ],
        missing=["Something: add --data."],
    )


@pytest.fixture
def report(tmp_path) -> Report:
    return Report(title="A subset", answer=["20 of 400."], selection=choice(tmp_path))


def test_every_number_is_on_the_page(report, tmp_path):
    page = Page(render(report, tmp_path))
    text = page.text
    for said in [
        "method dedup | top_k seed 7 dropped by dedup near-duplicate: 1,234",
        "web 300 75.0 % 5 25.0 % books 100 25.0 % 15 75.0 %",
        "mean score: mean and percentiles rows mean 5 % 25 % 50 % 75 % 95 % "
        "pool 100 0.2500 −0.5000 0.1000 0.3000 0.6000 0.9000 subset 100 0.2500",
        "score for maths: mean and percentiles",
        "The means of the random subsets: 0.5110, 0.5220, 0.5330.",
        "A seeded sample of 20 of 1,234 rows. In grey, 3 random subsets of the same size.",
        "examples 20 1.000 – 400 5.0 %",
        "tokens 1,500 75.00 1,600 – –",
        "characters 5,000 250.0 – about 100,000 5.0 %",
        "a square rank 1 score +0.500 gain −0.125 row 3 web",
        "Two and two? Four. rank 2 weight 2.5 cost 77 row 9 web",
        "The best Passed over. row 5 web dropped by dedup",
        "Something: add --data.",
    ]:
        assert said in text
    assert [image["alt"] for image in page.all("img")] == ["Image of row 3: a square"]
    fills = [s["style"] for s in page.all("span") if s.get("class") == "fill"]
    assert fills == [
        f"--w: {share:.4f}; background: var(--{colour})"
        for share, colour in ((0.75, "muted"), (0.25, "s0"), (0.25, "muted"), (0.75, "s0"))
    ]
    assert not re.search(r"\b(inf|nan|None|null)\b", text)


def test_every_text_is_escaped(report, tmp_path):
    payloads: dict[str, str] = {}
    value = hostile(report.model_dump(mode="json"), payloads)
    page = Page(render(Report.model_validate(value), tmp_path))
    assert len(payloads) > 25
    readable = page.text + " ".join(value for _, a in page.elements for value in a.values())
    assert [text for text, payload in payloads.items() if payload not in readable] == []
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_nothing_comes_from_elsewhere_and_the_bytes_stay(report, tmp_path):
    html = render(report, tmp_path)
    page = Page(html)
    links = [a[name] for _, a in page.elements for name in ("src", "href", "xlink:href") if name in a]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?:|<script", html)
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert max(ids.values()) == 1
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', html)) <= set(ids)
    assert render(Report.model_validate_json(report.model_dump_json()), tmp_path) == html


def test_what_is_not_known_has_no_section(tmp_path):
    bare = Choice(
        made=[("method", "random")],
        sources=[Mix(source="web", pool=None, subset=3), Mix(source="books", pool=None, subset=1)],
        costs=[Cost(unit="examples", subset=4)],
    )
    page = Page(render(Report(title="A", answer=["B"], selection=bare), tmp_path))
    assert [section["id"] for section in page.all("section")] == ["made", "mix", "cost"]
    assert not page.all("svg")
    assert "web 3 75.0 % books 1 25.0 %" in page.text
    assert len([s for s in page.all("span") if s.get("class") == "fill"]) == 2


# ------------------------------------------------------------------ the plots


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


def path(root: ElementTree.Element, name: str) -> np.ndarray:
    """The corners of a line in pixels."""
    group = next(g for g in root.iter() if g.get("class") == f"plot-{name}")
    found = re.findall(r"[ML] (\S+) (\S+)", next(group.iter("path")).attrib["d"])
    return np.array(found, dtype=float)


@pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])
def test_bars_are_as_high_as_their_shares_and_as_wide_as_their_bins(frame):
    root = drawn(selection_svg(histogram(), frame, "scores"))
    tops = {}
    for name, counts in (("others", POOL), ("chosen", SUBSET)):
        corners = path(root, name)
        base = corners[:, 1].max()
        steps = np.unique(np.round(corners[:, 0], 3))
        assert (steps - steps[0]) / (steps[-1] - steps[0]) == pytest.approx(
            (np.array(EDGES) + 1) / 3, abs=0.01
        )
        heights = [base - corners[np.isclose(corners[:, 0], x, atol=0.01), 1].min() for x in steps]
        shares = np.array(counts) / sum(counts)
        # a corner is as high as the higher of the bins beside it
        wanted = np.maximum([*shares, 0], [0, *shares])
        assert np.array(heights) / max(heights) == pytest.approx(wanted / wanted.max(), abs=0.01)
        tops[name] = max(heights) / wanted.max()
    assert tops["others"] == pytest.approx(tops["chosen"], rel=0.01)


def test_one_group_is_drawn_as_the_chosen():
    root = drawn(selection_svg(histogram("mean score", "subset"), WIDE, "scores"))
    classes = {g.get("class") for g in root.iter()}
    assert "plot-chosen" in classes
    assert "plot-others" not in classes


def test_the_gain_is_a_line_from_nothing():
    gain = Gain(rank=[1, 5, 20], total=[0.5, 0.8, 0.4])
    line = path(drawn(selection_svg(gain, WIDE, "gain")), "gain")
    x, y = (line - line[0]).T
    assert x / x[-1] == pytest.approx([0, 0.05, 0.25, 1], abs=1e-3)
    assert y / y[2] == pytest.approx([0, 0.625, 1, 0.5], abs=1e-3)


def test_every_plot_has_a_name_of_its_own(tmp_path):
    plots = selection_svgs(choice(tmp_path))
    assert list(plots) == ["scores", "scores-1", "gain", "redundancy", "coverage"]
    assert all(len(pair) == 2 for pair in plots.values())


# ------------------------------------------------------------------ the data behind it


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Histogram, {"of": "x", "edges": EDGES, "counts": [[1, 2]], "groups": [summary("a")]}),
        (Histogram, {"of": "x", "edges": EDGES, "counts": [POOL], "groups": []}),
        (Gain, {"rank": [1, 2], "total": [0.5]}),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(kind: Any, values: dict[str, Any]):
    with pytest.raises(ValidationError):
        kind(**values)


def test_the_json_has_all_but_the_pictures(tmp_path):
    value = choice(tmp_path).to_json()
    assert "image" not in value["chosen"][0]["rows"][0]
    assert Choice.model_validate(value).gain == choice(tmp_path).gain
    assert value["chosen"][0]["rows"][0]["text"] == "a square"


# ------------------------------------------------------------------ in a browser


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_fits_the_screen(report, width, tmp_path):
    seen = measure(render(report, tmp_path), tmp_path, width)
    assert seen["content"] <= width
    shown, hidden = ("wide", "narrow") if width == 1200 else ("narrow", "wide")
    assert seen[hidden] == [[0, 0]] * 5
    assert all(size[0] > 0.8 * width and size[1] > 100 for size in seen[shown])
    assert [round(w / seen["bars"][0][0], 2) for w, _ in seen["bars"]] == [1, 0.33, 0.33, 1]
    assert all(complete for complete, *_ in seen["images"])
