"""backcast invert: several curves, several targets, a table's own columns, a page; and what is printed of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_cases import write_jsonl

CURVES = {"random": 0.6, "quota": 0.3}
SIZES = (50, 100, 200, 400)
BOUNDS = ["--low", 0, "--high", 1]


def rows(**names: str) -> list[dict]:
    """Accuracies 0.9 - A (n/50)^-0.5, which are 0.75 at n = 50 (A/0.15)²: 800 and 200."""
    draw = np.random.default_rng(1).standard_normal
    return [
        {
            names.get("group", "selector"): curve,
            names.get("n", "n"): n,
            names.get("value", "metric"): 0.9 - a * (n / 50) ** -0.5 + 0.004 * draw(),
            "seed": seed,
        }
        for curve, a in CURVES.items()
        for n in SIZES
        for seed in range(2)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("invert") / "results.jsonl", rows())


def test_every_curve_answers_every_target_and_a_tables_own_columns_are_the_same(backcast, results, tmp_path):
    page = tmp_path / "page.html"
    words = ["invert", results, *BOUNDS, "--target", 0.75, "--target", 0.6]
    done = backcast(*words, "--json", "--report", page)
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert found["targets"] == [0.75, 0.6]
    assert [(answer["target"], answer["group"]) for answer in found["answers"]] == [
        (target, curve) for target in (0.75, 0.6) for curve in CURVES
    ]
    for answer in found["answers"]:
        truth = 50 * (CURVES[answer["group"]] / (0.9 - answer["target"])) ** 2
        assert answer["low"] < truth
        assert answer["high"] is None or truth < answer["high"]
        profile = answer["profile"]
        assert profile["n_spread"] is None or profile["n_spread"] >= 1
        assert profile["floor_ends"][0] <= 0.9 <= profile["floor_ends"][1]
    assert [each["target"] for each in found["preimages"]] == [0.75, 0.6]
    same = found["preimages"][1]
    assert [each["selector"] for each in same["inputs"]] == ["quota", "random"]
    assert same["factor_low"] < 4 < same["factor_high"]
    assert [each["first"] for each in found["savings"]] == ["quota", "quota"]
    assert [law["group"] for law in found["laws"]] == list(CURVES)

    html = page.read_text()
    assert "results.jsonl" in html
    for section in ("curves", "density", "pairs", "same", "savings"):
        assert f'id="{section}"' in html
    for sentence in (found["answers"][1]["sentence"], same["sentence"], found["savings"][0]["sentence"]):
        assert sentence in html

    own = rows(n="size", value="accuracy", group="method")
    table = tmp_path / "own.csv"
    table.write_text("\n".join(",".join(map(str, line)) for line in (own[0], *(row.values() for row in own))))
    columns = ["--n", "size", "--value", "accuracy", "--group", "method"]
    shown = backcast("invert", table, *words[2:], *columns)
    lines = shown.out.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        *(answer["sentence"] for answer in found["answers"]),
        *(each["sentence"] for each in (*found["preimages"], *found["savings"])),
    ]
    assert f"  {found['answers'][0]['next_run']}" in lines
    for answer in found["answers"]:
        assert all(f"  {warning}" in lines for warning in answer["warnings"])


def test_what_a_run_costs_whatever_its_size_makes_runs_larger(backcast, tmp_path):
    few = [r for r in rows() if r["selector"] == "random" and r["n"] < 400]
    alone = write_jsonl(tmp_path / "alone.jsonl", few)

    def proposed(*words: object) -> float:
        (answer,) = backcast("invert", alone, "--target", 0.75, *BOUNDS, "--json", *words).json["answers"]
        return float(answer["next_run"].partition("n = ")[2].split()[0].replace(",", ""))

    assert proposed("--cost", 1e6) > proposed()


def test_no_noise_no_profile(backcast, tmp_path):
    """Three sizes of one run each: an answer, whose profile would need a noise that nothing tells."""
    single = [r for r in rows() if (r["selector"], r["seed"]) == ("quota", 0) and r["n"] < 400]
    table = write_jsonl(tmp_path / "single.jsonl", single)
    page = tmp_path / "page.html"
    (answer,) = backcast("invert", table, "--target", 0.7, *BOUNDS, "--json", "--report", page).json[
        "answers"
    ]
    assert answer["profile"] is None
    assert 'id="density"' in page.read_text()
    assert 'id="pairs"' not in page.read_text()


def test_what_cannot_be_asked(backcast, results, tmp_path):
    for words, part in [
        (["--report", tmp_path / "page.pdf"], "page.pdf: the name of a page ends in .html"),
        (["--cost", -1], "a run's cost beside its examples is -1"),
        (["--group", "method"], "no column 'method'"),
    ]:
        done = backcast("invert", results, "--target", 0.75, *words)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert part in done.err
