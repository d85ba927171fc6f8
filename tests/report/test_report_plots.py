"""What the plots and the pictures show, read back from their elements and pixels."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from report_sample import digits_curves

from backcast.errors import InputError
from backcast.report import Answer, Curves, Fitted, Observation
from backcast.report.pictures import EDGE, HARMS, HELPS, THROUGH, heat_map, picture
from backcast.report.plots import NARROW, WIDE, Frame, curves_svg


class Plot:
    """A plot's marks in its own coordinates."""

    def __init__(self, curves: Curves, frame: Frame = WIDE) -> None:
        self.svg = curves_svg(curves, frame)
        self.root = ElementTree.fromstring(self.svg.replace("xlink:href", "href"))
        self.width, self.height = map(float, self.root.attrib["viewBox"].split()[2:])

    def marks(self, name: str) -> np.ndarray:
        """(m, 2) places of the markers of a group."""
        groups = [g for g in self.root.iter("g") if g.get("class") == name]
        return np.array([(float(u.attrib["x"]), float(u.attrib["y"])) for g in groups for u in g.iter("use")])

    def words(self) -> dict[str, tuple[float, float]]:
        return {t.text or "": (float(t.attrib["x"]), float(t.attrib["y"])) for t in self.root.iter("text")}


@pytest.mark.parametrize("frame", [WIDE, NARROW], ids=["wide", "narrow"])
def test_n_star_is_marked_where_it_lies(frame):
    curves = digits_curves()
    plot = Plot(curves, frame)
    words = plot.words()
    (low, _), (high, _) = words["60"], words["960"]
    for row, answer in enumerate(curves.answers):
        marks = plot.marks(f"plot-answer-{row}")
        if not answer.found:
            assert len(marks) == 0
            continue
        expected = low + (high - low) * np.log(answer.n / 60) / np.log(960 / 60)
        assert marks[:, 0] == pytest.approx([expected], abs=0.01)
    assert "n* ≈ 549" in words
    assert "n* ≈ 208" in words
    assert "out of reach" in words
    assert "cannot tell yet" in words
    assert "target 0.8" in words
    assert "full pool 0.846" in words
    for x, y in words.values():
        assert 0 <= x <= plot.width
        assert 0 <= y <= plot.height


def test_the_means_of_the_runs_are_where_they_belong():
    curves = digits_curves()
    plot = Plot(curves)
    ticks = {float(t): xy for t, xy in plot.words().items() if re.fullmatch(r"0\.\d", t)}
    for place, selector in enumerate(curves.selectors):
        marks = plot.marks(f"plot-means-{place}")
        means = [
            np.mean([o.metric for o in curves.observed if (o.selector, o.n) == (selector, n)])
            for n in (60, 120, 240, 480, 960)
        ]
        (a, (_, ya)), (b, (_, yb)) = min(ticks.items()), max(ticks.items())
        slope = (yb - ya) / (b - a)
        # Distances, as a tick's text sits a little below its line.
        assert np.diff(marks[:, 1]) == pytest.approx(slope * np.diff(means), abs=0.01)


def test_a_line_is_dashed_past_the_runs_that_it_was_fitted_to():
    runs = [Observation(selector="a", n=n, seed=0, metric=0.5) for n in (100, 800)]

    def ends(upto: float | None) -> list[list[float]]:
        """Where the solid and the dashed line begin and end."""
        flat = {"mean": [0.5] * 5, "low": [0.4] * 5, "high": [0.6] * 5}
        fitted = Fitted(selector="a", n=[100, 200, 400, 800, 900], level=0.9, upto=upto, **flat)
        plot = Plot(Curves(metric="m", higher_is_better=True, observed=runs, fitted=[fitted]))
        lines = [p for p in plot.root.iter("path") if "stroke-width: 2.2" in p.attrib.get("style", "")]
        solid, dashed = sorted(lines, key=lambda line: "stroke-dasharray" in line.attrib["style"])
        places = [re.findall(r"[ML] (\S+)", line.attrib["d"]) for line in (solid, dashed)]
        left, right = plot.words()["100"][0], plot.words()["800"][0]
        return [[100 * 8 ** ((float(x[i]) - left) / (right - left)) for i in (0, -1)] for x in places]

    assert np.allclose(ends(None), [[100, 800], [800, 900]], rtol=1e-3)
    assert np.allclose(ends(200), [[100, 200], [200, 900]], rtol=1e-3)


def test_a_narrow_range_has_a_linear_axis():
    runs = [Observation(selector="a", n=n, seed=0, metric=n / 400) for n in (100, 200, 300)]
    words = Plot(Curves(metric="m", higher_is_better=True, observed=runs)).words()
    x = [words[n][0] for n in ("100", "200", "300")]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])
    assert "training examples" in words


def test_an_answer_beyond_the_runs_extends_the_axis_and_one_far_beyond_is_an_arrow():
    runs = [Observation(selector="a", n=n, seed=0, metric=0.5) for n in (100, 1000)]

    def plot(n: float, high: float) -> Plot:
        answer = Answer(
            selector="a",
            target=0.8,
            n=n,
            low=900,
            high=high,
            p_unreachable=0,
            status="extrapolated",
            sentence="",
        )
        return Plot(Curves(metric="m", higher_is_better=True, observed=runs, answers=[answer]))

    near, far = plot(4000, 5000), plot(1e6, float("inf"))
    assert len(near.marks("plot-answer-0")) == 1
    assert near.marks("plot-answer-0")[0, 0] > near.words()["1,000"][0]
    assert "2,000" in near.words()
    assert len(far.marks("plot-answer-0")) == 0
    assert "n* ≈ 1,000,000" in far.words()


def test_plots_take_the_colours_of_the_page():
    for frame in (WIDE, NARROW):
        svg = curves_svg(digits_curves(), frame)
        assert not re.search(r"#[0-9a-f]{6}[;\"]", svg)
        assert {"--ink", "--muted", "--line", "--card", "--s0", "--s3"} <= set(
            re.findall(r"var\(([^)]+)\)", svg)
        )
        assert "font-family" not in svg


def test_one_run_and_equal_levels_draw():
    run = Observation(selector="$a_1$", n=10, seed=0, metric=0.0)
    svg = curves_svg(Curves(metric="m", higher_is_better=True, observed=[run], target=0.0, full=0.0))
    assert "target 0" in svg
    assert "full pool 0" in svg


# ------------------------------------------------------------------ pictures


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=float)


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, np.ndarray]:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "scan.png")
    return tmp_path / "scan.png", grey


def test_a_small_image_is_enlarged_pixel_by_pixel(scan):
    path, grey = scan
    shown = pixels(picture(path))
    assert np.array_equal(shown, np.kron(grey, np.ones((10, 10)))[..., None].repeat(3, axis=2))


def test_a_photograph_is_shrunk(tmp_path: Path):
    Image.new("RGB", (1600, 800), (200, 40, 40)).save(tmp_path / "photo.jpg")
    uri = picture(tmp_path / "photo.jpg")
    assert uri.startswith("data:image/jpeg;base64,")
    assert pixels(uri).shape == (EDGE // 2, EDGE, 3)
    assert np.abs(pixels(uri) - (200, 40, 40)).max() < 8


def test_a_heat_map_is_the_image_in_grey_under_signed_colours(scan):
    path, grey = scan
    shown = pixels(heat_map(path, [[0.2, 0.0], [-0.1, -0.2]]))
    under = np.kron(grey, np.ones((10, 10)))[..., None]
    expected = np.broadcast_to(under, (320, 320, 3)).copy()
    for rows, columns, value, colour in (
        (slice(0, 160), slice(0, 160), 1.0, HELPS),
        (slice(160, 320), slice(0, 160), 0.5, HARMS),
        (slice(160, 320), slice(160, 320), 1.0, HARMS),
    ):
        opacity = (1 - THROUGH) * value
        expected[rows, columns] = (1 - opacity) * under[rows, columns] + opacity * colour
    assert np.abs(shown - expected).max() <= 0.5 + 1e-4


def test_a_map_of_zeros_leaves_the_grey_image(scan):
    path, _ = scan
    assert np.array_equal(pixels(heat_map(path, [[0.0, 0.0]])), pixels(picture(path)))


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.png: image .* does not exist"):
        picture(tmp_path / "gone.png")
