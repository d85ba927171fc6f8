"""The report as data: what it takes, what it refuses, and its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from backcast.errors import InputError
from backcast.report import Answer, Fitted, Pair, Report, read_report, render, write_report
from backcast.scaling import Inversion


@pytest.mark.parametrize("name", ["digits", "docstrings"])
def test_the_file_gives_back_the_report_and_its_page(name, request):
    written = request.getfixturevalue(name)
    again = read_report(written.folder)
    assert again == written.report
    assert render(again, written.folder) == written.html


def test_the_file_is_strict_json(digits):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    value = json.loads((digits.folder / "report.json").read_text(), parse_constant=refuse)
    unreachable = value["curves"]["answers"][1]
    assert (unreachable["n"], unreachable["low"], unreachable["high"]) == (None, None, None)


def answer(samples: np.ndarray, n_max: float = 1000.0, flat: bool = False) -> Answer:
    """The answer of samples of n*, as a run makes it from its inversion."""
    found = Inversion.of(samples, 0.8, 0.9, 10.0, n_max, True, flat, "random")
    return Answer(
        selector=found.group,
        target=found.target,
        n=found.n,
        low=found.low,
        high=found.high,
        p_unreachable=found.p_unreachable,
        status=found.status,
        sentence=found.sentence(),
    )


def test_an_answer_in_words():
    spread = np.linspace(200.0, 300.0, 101)
    never = np.full(100, np.inf)
    half = np.concatenate([spread, np.full(150, np.inf)])

    reached, beyond = answer(spread), answer(spread, n_max=150.0)
    assert (reached.status, reached.words, reached.interval) == ("reached", "≈ 250", "205 to 295")
    assert (beyond.status, beyond.words) == ("extrapolated", "≈ 250")
    out = answer(never)
    assert (out.status, out.words, out.interval) == ("unreachable", "out of reach", "no amount is enough")
    open_ended = answer(half, flat=True)
    assert (open_ended.status, open_ended.words) == ("unidentified", "cannot tell yet")
    assert open_ended.interval == "205 or more"


def test_nonsense_is_refused():
    with pytest.raises(ValidationError, match="finite"):
        Pair(row=0, score=float("nan"), text="a")
    with pytest.raises(ValidationError, match="equally long"):
        Fitted(selector="a", n=[1, 2], mean=[0.1, 0.2], low=[0.1], high=[0.2, 0.3], level=0.9)
    with pytest.raises(ValidationError, match="equally long rows"):
        Pair(row=0, score=0.0, text="a", image_map=[[0.1, 0.2], [0.3]])
    pair = Pair(row=0, score=0.0, text="a")
    with pytest.raises(ValidationError, match="duplicates_found"):
        Report(title="a", answer=["b"], duplicates=[(0.9, pair, pair)])
    with pytest.raises(ValidationError, match="at least 1 item"):
        Report(title="a", answer=[])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        ("{", "Invalid JSON"),
        ('{"title": "a", "answer": ["b"], "figures": [{"name": "c"}]}', "figures.0.value: Field required"),
        ('{"title": "a", "answer": ["b"], "colour": "red"}', "colour: Extra inputs are not permitted"),
    ],
)
def test_a_broken_file_is_named_in_one_line(content, fault, tmp_path: Path):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError) as error:
        read_report(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'report.json'}: ")
    assert fault in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_without_its_images_nothing_is_written(content, tmp_path: Path):
    if content is not None:
        (tmp_path / "gone.png").write_bytes(content)
    report = Report(title="a", answer=["b"], best=[Pair(row=0, score=1.0, text="c", image="gone.png")])
    with pytest.raises(InputError, match=r"gone\.png: image .*") as error:
        write_report(report, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "report.html").exists()
