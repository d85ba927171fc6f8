"""The whole loop on a miniature setting: what it says is what it did, and it does nothing twice."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes_cases import BUDGETS, MiniDigits, MiniDocstrings

from backcast.attribution import Scores, SketchStore, near_duplicates
from backcast.cli import main
from backcast.data import read_examples
from backcast.errors import InputError
from backcast.files import read_json
from backcast.manifests import check, load_subset
from backcast.recipes.demo.loop import Loop
from backcast.recipes.demo.run import SETTINGS, demo
from backcast.recipes.demo.setting import SELECTORS
from backcast.report import read_report

KEYS = {
    "spoilt_auroc",
    "full_metric",
    "results",
    "duplicates",
    "inversions",
    "split_max_relative_gap",
    "seconds",
}


def manifests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "subsets").iterdir())}


def runs(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "sweep" / "runs").iterdir()}


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "seconds"}


@pytest.fixture(scope="module")
def settings() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "mini-digits", MiniDigits)
        patch.setitem(SETTINGS, "mini-docstrings", MiniDocstrings)
        yield


@pytest.fixture(scope="module")
def folder(settings, tmp_path_factory) -> Path:
    """A finished run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    demo(folder, "mini-digits", seed=1)
    return folder


@pytest.fixture(scope="module")
def summary(folder) -> dict[str, Any]:
    return read_json(folder / "summary.json")


# ------------------------------------------------------------------ the summary says what was found


def test_the_summary_has_its_keys(summary):
    assert summary.keys() >= KEYS
    assert summary["duplicates"].keys() == {"recall", "precision"}
    for row in summary["results"]:
        assert row.keys() >= {"selector", "budget", "n", "seed", "metric"}
    for row in summary["inversions"]:
        assert row.keys() >= {
            "selector",
            "target",
            "n",
            "low",
            "high",
            "p_unreachable",
            "status",
            "observed_n",
        }
    assert sum(v for k, v in summary["seconds"].items() if k != "total") == pytest.approx(
        summary["seconds"]["total"], abs=0.1
    )


def test_every_selector_ran_at_every_budget(summary, folder):
    sizes = {"10%": 15, "20%": 30, "40%": 60}
    expected = {(method, budget, sizes[budget], 0) for method in SELECTORS.values() for budget in BUDGETS}
    found = [(r["selector"], r["budget"], r["n"], r["seed"]) for r in summary["results"]]
    assert sorted(found) == sorted([*expected, ("full", "100%", 150, 0)])
    table = [json.loads(line) for line in (folder / "sweep" / "results.jsonl").read_text().splitlines()]
    assert [r["metric"] for r in table] == [r["metric"] for r in summary["results"]]
    (full,) = [r["metric"] for r in summary["results"] if r["selector"] == "full"]
    assert summary["full_metric"] == full


def test_the_score_tells_spoilt_from_clean(summary, folder):
    """The AUROC, counted pair by pair against the hidden truth; and it is more than chance."""
    truth = read_json(folder / "data" / "truth.json")
    spoilt = np.isin(truth["kinds"], ["wrong_caption", "ruined_noise", "ruined_blank"])
    assert spoilt.mean() == pytest.approx(0.3)
    best = Scores.load(folder / "scores.safetensors").values.max(axis=1)
    clean_wins = best[~spoilt][:, None] > best[spoilt]
    ties = best[~spoilt][:, None] == best[spoilt]
    assert summary["spoilt_auroc"] == pytest.approx((clean_wins + ties / 2).mean(), abs=1e-9)
    assert summary["spoilt_auroc"] > 0.55


def test_duplicates_are_counted_against_the_truth(summary, folder):
    truth = {tuple(pair) for pair in read_json(folder / "data" / "truth.json")["pairs"]}
    pairs, _ = near_duplicates(SketchStore.open(folder / "sketches" / "pool"))
    found = {tuple(pair) for pair in pairs.tolist()}
    assert summary["duplicates"]["recall"] == len(found & truth) / len(truth)
    assert summary["duplicates"]["precision"] == len(found & truth) / len(found)
    assert summary["duplicates"]["recall"] > 0.9


def test_what_was_observed_is_where_the_curve_meets_the_target(summary):
    assert {row["selector"] for row in summary["inversions"]} == set(SELECTORS)
    for row in summary["inversions"]:
        curve = sorted(
            (r["n"], r["metric"]) for r in summary["results"] if r["selector"] == SELECTORS[row["selector"]]
        )
        n, value = np.array(curve).T
        met = np.flatnonzero(value >= row["target"])
        if len(met) == 0:
            assert row["observed_n"] is None
        elif met[0] == 0:
            assert row["observed_n"] == n[0]
        else:
            j = met[0]
            crossing = np.interp(row["target"], value[j - 1 : j + 1], np.log(n[j - 1 : j + 1]))
            assert row["observed_n"] == pytest.approx(np.exp(crossing))
    # Each selector's own value at 40 % is among its targets, and is met there at the latest.
    assert sum(row["observed_n"] is not None for row in summary["inversions"]) >= len(SELECTORS)


def test_the_split_adds_up(summary):
    assert 0 <= summary["split_max_relative_gap"] <= 0.01


def test_every_manifest_fits_its_data(folder):
    paths = sorted((folder / "subsets").glob("*.jsonl"))
    assert len(paths) == len(SELECTORS) * len(BUDGETS)
    assert all(check(path) for path in paths)
    assert len(load_subset(paths[0])) == len(paths[0].read_text().splitlines())


def test_the_page_is_there(folder, summary):
    page, report = (folder / "report.html").read_text(), read_report(folder)
    assert report.answer[0] in page or report.answer[0].replace("'", "&#39;") in page
    assert len(report.best) == len(report.worst) == 6
    truth = read_json(folder / "data" / "truth.json")["kinds"]
    for pair in (*report.best, *report.worst):
        kind = truth[pair.row].replace("_", " ")
        assert pair.note == (None if kind == "clean" else kind)
        assert pair.parts is not None
        assert set(pair.parts) == {"image", "text"}
        assert [word for word, _ in pair.tokens or ()] == pair.text.split()
    assert report.best[0].score > report.worst[0].score
    assert {o.selector for o in report.curves.observed} == set(SELECTORS)
    assert report.curves.full == summary["full_metric"]


# ------------------------------------------------------------------ again


def test_a_rerun_makes_nothing_again(folder, summary, settings, monkeypatch, capsys):
    """Through the command line: one JSON object, the same but for the seconds."""
    before, made, page = runs(folder), manifests(folder), (folder / "report.html").read_bytes()
    words = ["demo", "--data", "mini-digits", "--out", str(folder), "--seed", "1"]
    monkeypatch.setattr(sys, "argv", ["backcast", *words, "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    found = json.loads(capsys.readouterr().out)
    assert found.pop("report") == str(folder / "report.html")
    assert timeless(found) == timeless(summary)
    assert runs(folder) == before
    assert manifests(folder) == made
    assert len(page) > 10_000


def test_the_same_seed_elsewhere_gives_the_same_bytes(folder, summary, tmp_path):
    """All is made anew but the fine-tunes, and of those one. That none of the others is made again says that what they
    depend on, data, first weights and subsets, came out the same, bit for bit.
    """
    run = tmp_path / "run"
    shutil.copytree(folder / "sweep" / "runs", run / "sweep" / "runs")
    shutil.copy(folder / "run.json", run)
    before = runs(run)
    lost = min(before)
    (run / "sweep" / "runs" / lost).unlink()
    again = Loop(MiniDigits(), run, seed=1).run()
    after = runs(run)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == [lost]
    assert manifests(run) == manifests(folder)
    assert timeless(again) == timeless(summary)


def test_another_run_does_not_go_into_the_same_folder(folder, settings):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for setting, seed, quick in (
        (MiniDigits(), 2, False),
        (MiniDigits(), 1, True),
        (MiniDocstrings(), 1, False),
    ):
        with pytest.raises(InputError, match=r"digits: holds another run; choose another --out"):
            Loop(setting, folder, seed, quick).run()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty, and no run of this demo"):
        Loop(MiniDigits(), tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# ------------------------------------------------------------------ text


def test_the_loop_on_text(settings, tmp_path, monkeypatch, capsys):
    """No truth, no modalities, lower is better; the command's table in words."""
    monkeypatch.setattr(
        sys, "argv", ["backcast", "demo", "--data", "mini-docstrings", "-o", str(tmp_path / "run")]
    )
    with pytest.raises(SystemExit) as left:
        main()
    out = capsys.readouterr().out
    assert not left.value.code
    assert str(tmp_path / "run" / "report.html") in out

    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["spoilt_auroc"] is None
    assert summary["duplicates"] is None
    assert summary["split_max_relative_gap"] is None
    assert {r["n"] for r in summary["results"]} == {6, 12, 24, 60}
    assert all(3 < r["metric"] < 10 for r in summary["results"])  # nats a token, hardly trained

    report = read_report(tmp_path / "run")
    assert report.answer[0] in " ".join(out.split())
    assert all(" → " in pair.text and pair.image is None and pair.parts is None for pair in report.best)
    pool = read_examples(tmp_path / "run" / "data" / "pool.jsonl")
    counts = {source: pool.index.sources.count(source) for source in ("email", "http")}
    assert report.sources["pool"] == counts
    assert all(sum(column.values()) == 12 for name, column in report.sources.items() if name != "pool")
