"""The page: complete, safe, self-contained, and the same bytes each time."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from backcast.report import Pair, Report, render


class Page(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def hostile(value: Any, payloads: dict[str, str]) -> Any:
    """A JSON value with a payload before every text, the same before equal texts; paths and statuses are left."""
    if isinstance(value, str):
        number = len(payloads)
        return (
            payloads.setdefault(value, f"<script>a{number}</script><img src=x onerror='{number}'>&lt;\"")
            + value
        )
    if isinstance(value, list):
        return [hostile(item, payloads) for item in value]
    if isinstance(value, dict):
        return {
            name: item if name in ("image", "status") else hostile(item, payloads)
            for name, item in value.items()
        }
    return value


@pytest.mark.parametrize("name", ["digits", "docstrings"])
def test_every_text_is_escaped_and_shown(name, request):
    written = request.getfixturevalue(name)
    payloads: dict[str, str] = {}
    value = hostile(written.report.model_dump(mode="json"), payloads)
    for pair in value["best"] + value["worst"]:
        pair["parts"] = {hostile("text", payloads): 0.1}
    value["sources"] = {hostile("pool", payloads): {hostile("email", payloads): 1}}
    page = Page(render(Report.model_validate(value), written.folder))

    assert len(payloads) > 30
    readable = page.text + " ".join(value for _, a in page.elements for value in a.values())
    assert [text for text, payload in payloads.items() if payload not in readable] == []
    assert not page.all("script")
    assert len(page.all("img")) == len(Page(written.html).all("img"))
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_nothing_comes_from_elsewhere(digits, docstrings):
    for written in (digits, docstrings):
        page = Page(written.html)
        links = [
            attributes[name]
            for _, attributes in page.elements
            for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
            if name in attributes
        ]
        assert links
        assert all(link.startswith(("data:", "#")) for link in links)
        assert not re.search(r"https?:|@import|@font-face|<script", written.html)
        assert set(re.findall(r"url\((.)", written.html)) == {"#"}
        policy = next(m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
        assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_ids_are_unique_and_references_are_met(digits):
    ids = Counter(attributes["id"] for _, attributes in Page(digits.html).elements if "id" in attributes)
    assert max(ids.values()) == 1
    references = set(re.findall(r'(?:url\(|href=")#([^")]+)', digits.html))
    assert len(references) > 10
    assert references <= set(ids)


def test_everything_is_on_the_page(digits):
    report, text = digits.report, Page(digits.html).text
    for sentence in [report.title, *report.answer, report.next_run]:
        assert sentence in text
    for figure in report.figures:
        mark = "✓ met" if figure.met else "✗ not met"
        assert f"{figure.name} {figure.value} {mark} wanted {figure.wanted}" in text
    for pair in report.best + report.worst:
        assert f"row {pair.row} score {pair.score:+.3f}".replace("-", "−") in text
        for modality, part in pair.parts.items():
            assert f"{modality} {part:+.3f}".replace("-", "−") in text
    for neighbours in report.neighbours:
        for cosine, pair in neighbours.found:
            assert f"{pair.text} cos {cosine:.3f} row {pair.row}" in text
    assert f"{report.duplicates_found} pairs of the pool" in text
    assert "collect 41 s" in text
    assert "fine-tune 4 min 22 s" in text
    assert "6 min 9 s in all" in text


def test_answers_without_a_number_are_in_words(digits):
    text = Page(digits.html).text
    assert "top_k out of reach no amount is enough A value of at least 0.8 is out of reach" in text
    assert "round_robin cannot tell yet 180 or more A value of at least 0.8 cannot be told" in text
    assert "random ≈ 549 420 to 760 A value of at least 0.8 takes about 549" in text
    assert not re.search(r"\b(inf|nan|None|null)\b", text)


def test_the_numbers_behind_the_curves(digits):
    text = Page(digits.html).text
    runs = [o.metric for o in digits.report.curves.observed if o.selector == "random" and o.n == 60]
    mean, spread = sum(runs) / 3, (sum((r - sum(runs) / 3) ** 2 for r in runs) / 2) ** 0.5
    assert len(runs) == 3
    assert f"60 {mean:#.4g} ± {spread:#.2g}" in text


def test_every_image_has_its_alternative_text(digits):
    report = digits.report
    images = Page(digits.html).all("img")
    gallery, near, twins = 2 * (8 + 8), 3 * (1 + 6), 2 * 8
    assert len(images) == gallery + near + twins
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    first = report.best[0]
    assert images[0]["alt"] == f"Image of row {first.row}: {first.text}"
    assert all(len(image["alt"]) > 20 for image in images)


def test_a_run_of_text_alone(docstrings):
    page = Page(docstrings.html)
    assert not page.all("img")
    best = docstrings.report.best[0]
    prompt, response = best.text.split(" → ")
    assert f"{prompt} {response} row {best.row} score +0.310" in page.text
    assert "→" not in page.text
    for token, part in docstrings.report.worst[0].tokens:
        assert token in page.text
        assert any(span.get("title") == f"{part:+.3f}".replace("-", "−") for span in page.all("span"))
    assert "lower is better" in page.text
    # Sources by their share of the pool, the largest first; a dash where there is none.
    assert "email 75.0 % 77.5 % 5.0 % logging 25.0 % 22.5 % 95.0 % examples 400 40 40" in page.text


def test_a_report_of_one_sentence():
    page = Page(render(Report(title="A", answer=["No run yet."]), "."))
    assert "No run yet." in page.text
    assert not page.all("section")


def test_token_tints_and_part_bars_are_signed_and_to_scale():
    pairs = [
        Pair(row=0, score=0.1, text="a b", parts={"text": 0.2}, tokens=[("a", 0.3), ("b", -0.1)]),
        Pair(row=1, score=-0.1, text="c", parts={"text": -0.1}),
    ]
    html = render(Report(title="A", answer=["B"], best=pairs[:1], worst=pairs[1:]), ".")
    page = Page(html)
    spans = {s["title"]: (s["class"], s["style"]) for s in page.all("span") if "title" in s}
    assert spans == {"+0.300": ("helps", "--w: 1.000"), "−0.100": ("harms", "--w: 0.333")}
    fills = [s["style"] for s in page.all("span") if s.get("class") == "fill"]
    assert fills == ["--w: 1.0000", "--w: 0.5000"]
    assert [d["class"] for d in page.all("dd")] == ["helps", "harms"]


def test_another_process_writes_the_same_bytes(digits):
    """Whatever its hash seed and the user's own matplotlib settings."""
    code = "import sys; from backcast.report import *; sys.stdout.write(render(read_report(sys.argv[1]), sys.argv[1]))"
    settings = Path(digits.folder) / "matplotlibrc"
    settings.write_text("font.size: 30\nsvg.fonttype: path\nfigure.facecolor: red\naxes.grid: True\n")
    done = subprocess.run(
        [sys.executable, "-c", code, str(digits.folder)],
        env={"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(settings), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == digits.html


def test_the_report_needs_no_torch():
    code = (
        "import sys, backcast.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
