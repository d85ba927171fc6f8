"""The report of a split: what it says is what was in the parts, and its page shows it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backcast.data import Example, Examples
from backcast.multimodal.parts import Parts, Split
from backcast.multimodal.shapley import interaction, shapley
from backcast.recipes.split.document import DRAWN, split_document, verdict
from backcast.report import Report, read_report, write_report
from backcast.report.pictures import HARMS, HELPS
from backcast.selectors.modality import driven

N, FLAGGED, SHOWN = 2300, 30, 6
BASELINES = ("colour+mean", "blur+mask")
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90), (240, 240, 240)]


def encoded(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def rows(count: int) -> Examples:
    return Examples.from_fields([{"text": str(i)} for i in range(count)])


def shapley_split(rng: np.random.Generator, near: Split | None = None) -> Split:
    """Of random games; or of games whose parts are ``near`` others."""
    v = {name: rng.normal(size=N) for name in ("both", "image", "text", "none")}
    parts, gap = shapley(v), np.zeros(N)
    if near:
        parts = {m: p + 0.5 * rng.normal(size=N) for m, p in near.parts.items()}
    else:
        gap[:FLAGGED] = 0.5
    none = near.score - parts["image"] - parts["text"] if near else v["none"]
    return Split(near.score if near else v["both"], none, parts, interaction(v), gap)


@pytest.fixture(scope="module")
def parts() -> Parts:
    rng = np.random.default_rng(1)
    first = shapley_split(rng)
    splits = {BASELINES[0]: first, BASELINES[1]: shapley_split(rng, first)}
    return Parts(rows(N).index, splits, {"method": "shapley", "score": {"method": "tracin"}})


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Examples:
    """A caption with a path and one with bytes; a question without an image, and one about one; two images in
    messages, of which the second is lower; and an image that a processor cuts into tiles."""
    path = tmp_path_factory.mktemp("own") / "red.png"
    path.write_bytes(encoded(COLOURS[0]))
    turns = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Same?"}],
        },
        {"role": "assistant", "content": "No, never."},
    ]
    fields = [
        {"image": str(path), "caption": "a red square"},
        {"image": encoded(COLOURS[1]), "caption": "a <b>green</b> square"},
        {"prompt": "What is two and two?", "response": "Four, of course."},
        {"image": encoded(COLOURS[2]), "prompt": "What colour?", "response": "Blue, I think."},
        {"messages": turns, "images": [encoded(COLOURS[3], (56, 56)), encoded(COLOURS[4], (84, 28))]},
        {"image": encoded(COLOURS[0], (64, 64)), "prompt": "How many?", "response": "One only."},
    ]
    return Examples(
        [Example(f, row, "memory") for row, f in zip((7, 900, 15, 3, 44, 2000), fields, strict=True)]
    )


WORDS = [
    ["a", "red", "square"],
    ["a", "<b>green</b>", "square"],
    ["What", "is", "two", "and", "two?"],
    ["What", "colour?"],
    ["Same?"],
    ["How", "many?"],
]


@pytest.fixture(scope="module")
def shortlist(examples) -> Parts:
    grids = [(4, 4), (4, 4), (0, 0), (2, 2), (4, 10), (2, 10)]
    rng = np.random.default_rng(2)
    maps = {
        "image": [rng.normal(size=grid) for grid in grids],
        "text": [rng.normal(size=len(own)) for own in WORDS],
    }
    maps["image"][4][2:, 4:] = 0
    parts = {m: np.array([values.sum() for values in maps[m]]) for m in maps}
    baseline = rng.normal(size=SHOWN)
    split = Split(
        baseline + parts["image"] + parts["text"],
        baseline,
        parts,
        rng.normal(size=SHOWN),
        np.zeros(SHOWN),
        maps,
    )
    made = {"method": "integrated_gradients", "score": {"method": "tracin"}}
    return Parts(examples.index, {BASELINES[0]: split}, made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def report(parts, shortlist, examples, folder) -> Report:
    return split_document(parts, shortlist, examples, WORDS, folder)


@pytest.fixture(scope="module")
def page(report, folder) -> str:
    return write_report(report, folder).read_text(encoding="utf-8")


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


# ------------------------------------------------------------------ the pool


def test_the_counts_are_those_of_the_rows_one_by_one(parts, report):
    counts = dict.fromkeys(("image", "text", "mixed"), 0)
    alone = {"image": 0, "text": 0}
    for i, t in list(zip(*parts.first.parts.values(), strict=True))[FLAGGED:]:
        share = abs(i) / (abs(i) + abs(t))
        counts["image" if share >= 2 / 3 else "text" if share <= 1 / 3 else "mixed"] += 1
        if i + t < 0 and i * t < 0:
            alone["image" if i < 0 else "text"] += 1
    modality = report.modality
    assert min(*counts.values(), *alone.values()) > 100
    assert (modality.driven, modality.one_sided) == (counts, alone)
    assert (modality.flagged, modality.rows) == (FLAGGED, N)
    assert report.answer[0] == (
        f"Of 2,300 rows {counts['image']:,} are driven by their image, {counts['text']:,} by their text and "
        f"{counts['mixed']:,} by both; {sum(alone.values()):,} harm through one modality alone."
    )
    assert any(sentence.startswith("30 rows are flagged") for sentence in report.answer)


def test_the_points_are_rows_of_their_class_and_the_same_each_time(
    parts, shortlist, examples, folder, report
):
    points = report.modality.points
    assert sum(map(len, points.values())) == DRAWN
    own = set(zip(*(values.tolist() for values in parts.first.parts.values()), strict=True))
    flagged = set(zip(*(values[:FLAGGED].tolist() for values in parts.first.parts.values()), strict=True))
    for name, places in points.items():
        assert set(places) <= own - flagged
        image, text = np.array(places).T
        assert set(driven({"image": image, "text": text})) == {name}
    assert split_document(parts, shortlist, examples, WORDS, folder) == report


def test_the_interactions_share_is_that_of_the_games_dividends(report):
    """v(image) − v(none), v(text) − v(none) and the interaction are a game's Harsanyi dividends."""
    rng = np.random.default_rng(1)
    v = {name: rng.normal(size=N)[FLAGGED:] for name in ("both", "image", "text", "none")}
    sizes = np.abs([v["image"] - v["none"], v["text"] - v["none"], interaction(v)])
    assert report.modality.interaction == pytest.approx(np.median(sizes[2] / sizes.sum(0)))


def test_the_agreement_is_on_the_page(parts, report, page):
    rows = parts.agreement()
    assert [row["modality"] for row in rows] == ["image", "text"]
    assert all(0.5 < row["rank"] < 0.99 for row in rows)
    for row in rows:
        cells = [
            "colour+mean and blur+mask</th>",
            row["modality"],
            f"{100 * row['sign']:.1f} %",
            f"{row['rank']:.3f}",
            "2,270",
        ]
        assert "<td>".join(cell if "</th>" in cell else f"{cell}</td>" for cell in cells) in page
    for row in rows:
        assert any(
            f"{100 * row['sign']:.0f} % of the {row['modality']} parts" in said
            and f"{row['rank']:.2f}." in said
            for said in report.answer
        )
    assert not any("Only one baseline" in said for said in report.modality.about)


def test_one_baseline_is_said_to_be_one(parts, shortlist, examples, tmp_path):
    alone = Parts(parts.rows, {BASELINES[0]: parts.first}, {**parts.made, "method": "integrated_gradients"})
    report = split_document(alone, shortlist, examples, WORDS, tmp_path)
    assert any("Only one baseline was run" in said for said in report.modality.about)
    assert (report.modality.agreement, report.modality.interaction) == ([], None)
    write_report(report, tmp_path)


# ------------------------------------------------------------------ the examples


def test_the_examples_are_the_shortlists(report, shortlist):
    pairs = [*report.best, *report.worst]
    assert [pair.row for pair in report.best] == [7, 900, 15]
    assert [pair.row for pair in report.worst] == [3, 44, 2000]
    split = shortlist.first
    for k, pair in enumerate(pairs):
        assert pair.parts == {m: values[k] for m, values in split.parts.items()}
        assert pair.baseline + sum(pair.parts.values()) == pytest.approx(pair.score)
        assert pair.interaction == split.interaction[k]
        assert pair.tokens == list(zip(WORDS[k], split.maps["text"][k], strict=True))
        assert pair.verdict == verdict(pair.score, **pair.parts)
    assert pairs[4].text == "Same? → No, never."


def test_a_row_without_an_image_has_neither_picture_nor_map(report, page):
    pair = report.best[2]
    assert (pair.image, pair.image_map, pair.parts["image"]) == (None, None, 0)
    assert "its text alone" in pair.verdict or "baseline" in pair.verdict
    assert "Image of row 15" not in page


def test_tiles_that_stand_side_by_side_are_not_laid_over_the_image(report, page):
    assert report.worst[2].image == "images/row-2000.png"
    assert report.worst[2].image_map is None
    assert len(pictures(page)) == 2 * 4 + 1


def test_two_images_are_one_picture_that_their_patches_cover(report, folder, shortlist):
    """Patches of 14 pixels: 4 × 4 of the first, 2 × 6 of the second, which stands at the top."""
    pair = report.worst[1]
    shown = np.asarray(Image.open(folder / pair.image))
    assert shown.shape == (4 * 14, 10 * 14, 3)
    assert (shown[:, :56] == COLOURS[3]).all()
    assert (shown[:28, 56:] == COLOURS[4]).all()
    assert (shown[28:, 56:] == 255).all()
    assert pair.image_map == shortlist.first.maps["image"][4].tolist()


def test_a_heat_map_is_drawn_in_the_parts_colours(report, page):
    """The strongest patch of the first row's map, red at 200, 30, 30 below it."""
    grid = np.array(report.best[0].image_map)
    image, shown = pictures(page)[:2]
    assert image.shape == shown.shape == (320, 320, 3)
    row, column = np.unravel_index(np.abs(grid).argmax(), grid.shape)
    grey = np.asarray(Image.new("RGB", (1, 1), COLOURS[0]).convert("L"))[0, 0]
    wanted = 0.25 * grey + 0.75 * (HELPS if grid[row, column] > 0 else HARMS)
    assert np.abs(shown[80 * row + 40, 80 * column + 40] - wanted).max() < 1.5


def test_prompts_are_tinted_and_answers_are_not(report, page):
    pair = report.worst[0]
    for token, part in pair.tokens:
        title = (f"{part:+.3f}" if abs(part) >= 0.01 else f"{part:+.2g}").replace("-", "−")
        assert re.search(rf'title="{re.escape(title)}">{re.escape(token)}</span>', page)
    assert '<p class="response">Blue, I think.</p>' in page
    assert '<p class="prompt">What colour?</p>' not in page


def test_the_page_needs_nothing_from_elsewhere(report, page, folder):
    assert not re.search(r"https?:|<script|<b>green", page)
    assert all(link.startswith(("data:", "#")) for link in re.findall(r'(?:src|href)="([^"]*)', page))
    for sentence in [*report.answer, *report.modality.about]:
        assert sentence.replace("'", "&#39;") in page
    assert read_report(folder) == report


@pytest.mark.parametrize(
    ("numbers", "wanted"),
    [
        ((1.0, 2.0, -0.5), "helps through its image alone"),
        ((-1.0, -0.1, 0.05), "harms through its image alone"),
        ((-1.0, 0.0, -0.3), "harms through its text alone"),
        ((-1.0, -0.1, -0.3), "harms mostly through its text"),
        ((1.0, 0.2, 0.3), "helps through both"),
        ((1.0, -0.2, -0.3), "helps less than its baseline does"),
        ((-1.0, 0.2, 0.3), "harms less than its baseline does"),
        ((1.0, 0.0, 0.0), "its contents change nothing"),
    ],
)
def test_verdicts(numbers, wanted):
    assert verdict(*numbers) == wanted


def test_a_flagged_row_has_no_parts(parts, shortlist, examples, tmp_path):
    split = shortlist.first
    gap = np.array([0.0, 0.5, 0.0, 0.0, 0.0, np.nan])
    own = Split(split.score, split.baseline, split.parts, split.interaction, gap, split.maps)
    report = split_document(
        parts, Parts(examples.index, {"a+b": own}, shortlist.made), examples, WORDS, tmp_path
    )
    for pair in (report.best[1], report.worst[2]):
        assert (pair.parts, pair.image_map, pair.tokens) == (None, None, None)
        assert pair.verdict.startswith("flagged")
    assert report.best[0].parts is not None
    write_report(report, tmp_path)
