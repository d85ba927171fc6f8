"""The page in headless Chromium: no errors, everything in place at every width."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backcast.report import Agreement, Modality, Report, render

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
#: Writes down what the browser made of the page.
MEASURE = """<script>
addEventListener("load", () => {
  const box = (e) => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const all = (s) => [...document.querySelectorAll(s)];
  parent.document.documentElement.dataset.measured = JSON.stringify({
    width: innerWidth,
    content: document.documentElement.scrollWidth,
    wide: all(".plot .wide svg").map(box),
    narrow: all(".plot .narrow svg").map(box),
    means: all(".plot svg [class^=plot-means] use").map(box),
    answers: all(".plot svg [class^=plot-answer] use").map(box),
    points: all(".plot svg [class^=plot-parts] use").map(box),
    images: all("img").map((e) => [e.complete, e.naturalWidth, ...box(e)]),
    bars: all(".parts .fill, .timings .fill").map(box),
    card: getComputedStyle(document.documentElement).getPropertyValue("--card"),
  });
});
</script>"""


def browse(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """The page's DOM once it is loaded, and what went to the console."""
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--v=0"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--dump-dom", *options),
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert "</html>" in done.stdout, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def measure(source: str, folder: Path, width: int, scheme: str = "light") -> dict[str, Any]:
    """Sizes on a screen ``width`` pixels wide: a frame, as Chromium's own windows are never narrower than 500.

    The policy must go, for it keeps the measuring script out.
    """
    page = folder / "measured.html"
    framed = html.escape(POLICY.sub(lambda _: MEASURE, source))
    page.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{framed}"></iframe>',
        encoding="utf-8",
    )
    colours = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    dom, console = browse(page, folder / "profile", "--window-size=1400,1000", colours)
    assert console == []
    found = re.search(r'data-measured="([^"]*)"', dom)
    assert found
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("name", ["digits", "docstrings"])
def test_the_page_opens_without_a_word_on_the_console(name, request, tmp_path: Path):
    written = request.getfixturevalue(name)
    dom, console = browse(written.page, tmp_path / "profile")
    assert console == []
    assert written.report.answer[0] in html.unescape(dom)


def test_the_policy_stops_scripts_and_foreign_images_and_the_console_says_so(digits, tmp_path: Path):
    page = tmp_path / "attacked.html"
    attack = "<script>document.title = 'taken'</script><img src='other.png'></body>"
    page.write_text(digits.html.replace("</body>", attack), encoding="utf-8")
    dom, console = browse(page, tmp_path / "profile")
    assert len(console) == 2
    assert "<title>taken" not in dom


@pytest.mark.parametrize("width", [1200, 400])
def test_plots_and_pictures_are_there_and_nothing_sticks_out(digits, width, tmp_path: Path):
    seen = measure(digits.html, tmp_path, width)
    assert seen["width"] == width
    assert seen["content"] <= width
    shown, hidden = ("wide", "narrow") if width == 1200 else ("narrow", "wide")
    assert seen[hidden] == [[0, 0]]
    assert len(seen[shown]) == 1
    assert seen[shown][0][0] > 0.8 * width
    assert seen[shown][0][1] > 300
    curves = digits.report.curves
    drawn = [size for size in seen["means"] if min(size) > 3]
    assert len(drawn) == 5 * len(curves.selectors)
    assert len([size for size in seen["answers"] if min(size) > 3]) == sum(a.found for a in curves.answers)
    assert len(seen["images"]) == 32 + 21 + 16
    assert all(complete and natural == 320 and min(size) > 40 for complete, natural, *size in seen["images"])
    assert max(abs(w - h) for *_, w, h in seen["images"]) < 1
    assert len(seen["bars"]) == 2 * 16 + 7
    assert all(min(size) > 0 for size in seen["bars"])


def test_a_page_of_text_fits_a_narrow_screen(docstrings, tmp_path: Path):
    seen = measure(docstrings.html, tmp_path, 400)
    assert seen["content"] <= 400
    assert seen["images"] == []
    assert seen["narrow"][0][1] > 200


@pytest.mark.parametrize("width", [1200, 400])
def test_a_split_fits_the_screen(width, tmp_path: Path):
    points = np.random.default_rng(0).normal(size=(3, 20, 2)).tolist()
    classes = ("image", "text", "mixed")
    agreement = Agreement(
        baselines=("colour+mean", "blur+mask"), modality="image", sign=0.9, rank=0.8, rows=60
    )
    modality = Modality(
        driven=dict.fromkeys(classes, 20),
        one_sided={"image": 5, "text": 3},
        points=dict(zip(classes, points, strict=True)),
        agreement=[agreement],
    )
    seen = measure(render(Report(title="A", answer=["B"], modality=modality), tmp_path), tmp_path, width)
    assert seen["content"] <= width
    shown, hidden = ("wide", "narrow") if width == 1200 else ("narrow", "wide")
    assert seen[hidden] == [[0, 0]]
    assert seen[shown][0][0] > 0.8 * width
    assert len([size for size in seen["points"] if min(size) > 1]) == 60
    assert [round(w / seen["bars"][0][0], 2) for w, _ in seen["bars"]] == [1, 1, 1, 0.25, 0.15]


def test_dark_and_light_differ(digits, tmp_path: Path):
    light, dark = (measure(digits.html, tmp_path, 800, scheme)["card"] for scheme in ("light", "dark"))
    assert (light, dark) == ("#ffffff", "#1c1f25")
