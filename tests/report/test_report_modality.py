"""The split by modality on the page: rows where their parts put them, names in their regions, counts and agreement."""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from backcast.errors import InputError
from backcast.report import Agreement, Modality, Pair, Report, render
from backcast.report.parts_plot import parts_svg
from backcast.report.pictures import is_wide, side_by_side
from backcast.report.plots import NARROW, WIDE

POINTS = {"image": [(-2.0, 0.5), (1.0, 0.1)], "text": [(0.1, -1.5)], "mixed": []}


def modality(**changes: object) -> Modality:
    values = {
        "driven": {"image": 1200, "text": 2100, "mixed": 700},
        "flagged": 16,
        "one_sided": {"image": 200, "text": 110},
        "points": POINTS,
        "agreement": [
            Agreement(baselines=("a+b", "c+d"), modality="image", sign=0.934, rank=-0.125, rows=3990),
            Agreement(baselines=("a+b", "c+d"), modality="text", sign=None, rank=None, rows=0),
        ],
        "interaction": 0.25,
        "about": ["Parts of <what>."],
    }
    return Modality(**{**values, **changes})


def plot(points: dict[str, list[tuple[float, float]]], frame=WIDE) -> ElementTree.Element:
    return ElementTree.fromstring(parts_svg(modality(points=points), frame).replace("xlink:href", "href"))


def marks(root: ElementTree.Element, place: int) -> np.ndarray:
    groups = [g for g in root.iter("g") if g.get("class") == f"plot-parts-{place}"]
    return np.array([(float(u.attrib["x"]), float(u.attrib["y"])) for g in groups for u in g.iter("use")])


def scale(root: ElementTree.Element) -> tuple[np.ndarray, np.ndarray]:
    """Where (0, 0) lies, and how many pixels one unit of each part is, from the line where the parts cancel."""
    dashed = [p for p in root.iter("path") if "stroke-dasharray" in p.attrib.get("style", "")]
    assert len(dashed) == 1
    ends = np.array(re.findall(r"[ML] (\S+) (\S+)", dashed[0].attrib["d"]), dtype=float)
    return ends.mean(axis=0), ends[1] - ends[0]


@pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])
def test_rows_are_where_their_parts_put_them(frame):
    root = plot(POINTS, frame)
    middle, across = scale(root)
    (left, high), (right, low) = marks(root, 0)
    # −2 is the largest part, so the axes end a little past it, on either side.
    unit = across / 2 / (1.05 * 2)
    assert (left, right) == pytest.approx(middle[0] + unit[0] * np.array([-2.0, 1.0]), abs=0.01)
    assert (high, low) == pytest.approx(middle[1] - unit[1] * np.array([0.5, 0.1]), abs=0.01)
    assert marks(root, 1) == pytest.approx((middle + unit * (0.1, 1.5))[None], abs=0.01)
    assert len(marks(root, 2)) == 0


def test_rows_far_beyond_the_others_are_on_the_edge():
    rng = np.random.default_rng(0)
    many = [tuple(place) for place in rng.uniform(-1, 1, (500, 2)).tolist()]
    root = plot({"mixed": [*many, (-1000.0, 0.0)]})
    middle, across = scale(root)
    drawn = marks(root, 2)
    assert drawn[-1] == pytest.approx((middle[0] - across[0] / 2, middle[1]), abs=0.01)
    assert np.ptp(drawn[:-1, 0]) > 0.6 * across[0]


@pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])
def test_regions_are_named_where_they_are(frame):
    """Each name begins or ends in the region that it names: by the parts' signs, and by their sum's."""
    root = plot(POINTS, frame)
    middle, across = scale(root)
    found = {}
    words = [(t.text or "", t) for t in root.iter("text")]
    for place, (word, element) in enumerate(words):
        if not word.startswith(("helpful", "harmful")):
            continue
        through = word.partition(" through")[2].strip() or words[place + 1][0]
        moved = re.findall(r"translate\((\S+) (\S+)\)", element.attrib.get("transform", ""))
        anchor = moved[0] if moved else (element.attrib["x"], element.attrib["y"])
        x, y = ((np.array(anchor, dtype=float) - middle) / across * 2).tolist()
        found[word.split()[0], through] = (x, -y)
    assert len(found) == 6
    for (does, through), (x, y) in found.items():
        assert (x + y > 0) == (does == "helpful")
        if through == "both":
            assert (x > 0) == (y > 0)
        else:
            alone, other = (x, y) if "image" in through else (y, x)
            assert alone * other < 0
            assert (alone > 0) == (does == "helpful")


@pytest.mark.parametrize("points", [{}, {"image": []}, {"mixed": [(0.0, 0.0)]}])
def test_nothing_to_draw_draws(points):
    page = render(Report(title="A", answer=["B"], modality=modality(points=points)), ".")
    assert ("<svg" in page) == bool(points.get("mixed"))


def test_counts_and_agreement_are_on_the_page():
    page = render(Report(title="A", answer=["B"], modality=modality()), ".")
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    assert "4,016 scores" in text
    assert "image-driven 1,200 29.9 % ■ text-driven 2,100 52.3 % ▲ mixed 700 17.4 %" in text
    assert "flagged: the parts do not add up 16 0.4 %" in text
    assert "harmful through the image alone 200 5.0 % harmful through the text alone 110 2.7 %" in text
    assert "3 rows of 4,000, chosen at random" in text
    assert "a+b and c+d image 93.4 % −0.125 3,990 a+b and c+d text – – 0" in text
    assert "25.0 % of |image alone|" in text
    assert "Parts of &lt;what&gt;." in page
    assert len(re.findall(r"<svg", page)) == 2
    assert not re.search(r"https?:|<script", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_points_of_an_unknown_class_are_refused():
    with pytest.raises(ValidationError, match="classes in driven"):
        modality(points={"sound": [(0.0, 0.0)]})


# ------------------------------------------------------------------ several images in one picture


def stacked(*sizes: tuple[int, int]) -> np.ndarray:
    """Patches of images side by side, the k-th's all k: zeros below the lower ones."""
    most = max(h for h, _ in sizes)
    own = [np.pad(np.full(size, k + 1.0), ((0, most - size[0]), (0, 0))) for k, size in enumerate(sizes)]
    return np.concatenate(own, axis=1)


@pytest.mark.parametrize(
    "sizes",
    [
        [(4, 4), (4, 4), (4, 4)],  # squared by the processor
        [(4, 8), (8, 4), (6, 6)],  # of one size, whatever the images'
        [(4, 8), (16, 8), (3, 3)],  # at their own sizes
        [(3, 6), (6, 3), (3, 3)],  # as wide as squares would be
    ],
)
def test_every_image_lies_where_its_patches_are(sizes):
    shapes = [(120, 60), (120, 240), (48, 48)]
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    images = [Image.new("RGB", shape, colour) for shape, colour in zip(shapes, colours, strict=True)]
    patches = stacked(*sizes)
    shown, covered = side_by_side(images, patches)
    assert covered
    edge = shown.height // len(patches)
    assert (shown.height, shown.width) == (edge * patches.shape[0], edge * patches.shape[1])
    palette = np.array([(255, 255, 255), *colours])
    assert (np.asarray(shown) == np.kron(palette[patches.astype(int)], np.ones((edge, edge, 1)))).all()


def test_patches_of_tiles_are_laid_over_nothing():
    wide, tall = Image.new("RGB", (60, 30), "red"), Image.new("RGB", (30, 60), "blue")
    shown, covered = side_by_side([wide, tall], np.ones((4, 20)))
    assert (shown.size, covered) == ((90, 60), False)
    assert [shown.getpixel(place) for place in ((0, 29), (0, 30), (60, 59))] == [
        (255, 0, 0),
        (255, 255, 255),
        (0, 0, 255),
    ]
    whether = {shape: side_by_side([wide], np.ones(shape))[1] for shape in ((7, 7), (4, 9), (4, 12), (0, 0))}
    assert whether == {(7, 7): True, (4, 9): True, (4, 12): False, (0, 0): False}
    assert not side_by_side([wide, tall], np.zeros((0, 0)))[1]


def test_a_large_picture_is_shrunk_and_a_wide_one_has_a_line_of_its_own(tmp_path: Path):
    photo = Image.new("RGB", (3000, 2000))
    two, _ = side_by_side([photo, photo], np.ones((10, 30)))
    assert two.size == (30 * 21, 10 * 21)
    two.save(tmp_path / "two.png")
    assert side_by_side([photo], np.ones((10, 15)))[0].size == (640, 427)
    assert is_wide(tmp_path / "two.png")
    photo.save(tmp_path / "one.png")
    assert not is_wide(tmp_path / "one.png")
    pairs = [Pair(row=i, score=0.0, text="a", image=f"{name}.png") for i, name in enumerate(("two", "one"))]
    page = render(Report(title="A", answer=["B"], best=pairs), tmp_path)
    assert re.findall(r'class="(frames[^"]*)"', page) == ["frames wide", "frames"]
    with pytest.raises(InputError, match=r"none\.png: image .* does not exist"):
        is_wide(tmp_path / "none.png")


def test_a_card_tells_its_baseline_its_interaction_and_its_verdict():
    told = {"parts": {"image": -0.5, "text": 0.2}, "baseline": 0.1, "interaction": -0.04}
    pair = Pair(
        row=3,
        score=-0.2,
        text="why? → <so>",
        verdict="harms through its image alone",
        tokens=[("why", 0.3), ("?", -0.1)],
        tokens_in_prompt=True,
        **told,
    )
    page = render(Report(title="A", answer=["B"], worst=[pair]), ".")
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Harms through its image alone image −0.500 text +0.200" in text
    assert "score −0.200 baseline +0.100 interaction −0.040" in text
    assert '<p class="prompt tokens">' in page
    assert '<p class="response">&lt;so&gt;</p>' in page
