"""check, diff and export print what the library finds."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_cases import pairs, write_jsonl

from backcast.attribution.scores import Scores
from backcast.data import read_examples
from backcast.manifests import Manifest, check, diff
from backcast.selectors import select

N = 30


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [{**row, "source": "ab"[i % 2]} for i, row in enumerate(pairs(N, 0))]
    return write_jsonl(tmp_path / "data" / "pool.jsonl", rows)


@pytest.fixture
def subset(pool: Path, tmp_path: Path) -> Path:
    values = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
    scores = Scores(values, read_examples(pool).index, ("x", "y"), "grad_cos", {}, {})
    return select(scores, 6, "top_k").save(tmp_path / "subset.jsonl").path


@pytest.fixture
def other(pool: Path, tmp_path: Path) -> Path:
    return select(read_examples(pool).index, 15, "random", 3).save(tmp_path / "other.jsonl").path


# ------------------------------------------------------------------ check


def test_check_of_a_manifest_that_fits(backcast, subset, pool):
    done = backcast("check", subset)
    assert (done.code, done.out, done.err) == (0, f"{subset}: all 6 rows fit {pool}\n", "")
    assert backcast("check", subset, "--json").json == json.loads(json.dumps(check(subset).to_json()))


def test_check_names_the_first_of_each_fault(backcast, subset, pool):
    lines = pool.read_text().splitlines(keepends=True)
    pool.write_text("".join(lines[1:]))
    rows = Manifest.load(subset).rows.tolist()
    done = backcast("check", subset, "--json")
    assert done.code == 1
    assert done.json["moved"] == 6 - rows.count(0)
    assert done.json["first"]["moved"] == [[row, row - 1] for row in rows if row][:5]
    assert backcast("check", subset).code == 1


# ------------------------------------------------------------------ diff


def test_diff_is_the_librarys(backcast, subset, other):
    done = backcast("diff", subset, other, "--json")
    assert done.code == 0
    assert done.json == json.loads(json.dumps(diff(subset, other).to_json()))
    assert done.json["overlap"]["expected"] == 6 * 15 / N


def test_diff_prints_short_tables(backcast, subset, other, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    done = backcast("diff", subset, other)
    assert (done.code, done.err) == (0, "")
    shown = done.out.splitlines()
    assert shown[0] == diff(subset, other).summary
    titles = [line.split(":")[0] for before, line in pairwise(shown) if not before]
    assert titles == ["sources", "scores", "made with", "only in a, the first", "only in b, the first"]
    made = {
        line.split()[0]: line.split()[1:] for line in shown if line.startswith(("selector.method", "seed"))
    }
    assert made == {"selector.method": ["top_k", "random"], "seed": ["0", "3"]}


def test_diff_of_a_subset_with_itself(backcast, subset):
    found = backcast("diff", subset, subset, "--json").json
    assert (found["overlap"]["jaccard"], found["agreement"], found["made"]) == (1, pytest.approx(1), [])
    assert backcast("diff", subset, subset).code == 0


# ------------------------------------------------------------------ export


def test_export_writes_the_rows(backcast, subset, tmp_path):
    out = tmp_path / "train.jsonl"
    found = backcast("export", subset, "-o", out, "--json").json
    assert found == {"files": [str(out)], "examples": 6, "format": "jsonl"}
    assert read_examples(out).index.ids == Manifest.load(subset).ids


def test_export_of_moved_data(backcast, subset, pool, tmp_path):
    moved = pool.rename(tmp_path / "moved.jsonl")
    out = tmp_path / "train.parquet"
    assert backcast("export", subset, "-o", out, "--format", "parquet").code == 2
    assert backcast("export", subset, "-o", out, "--format", "parquet", "--data", moved).code == 0
    assert read_examples(out).index.ids == Manifest.load(subset).ids


def test_export_for_a_trainer(backcast, subset, tmp_path):
    out = tmp_path / "data.yaml"
    done = backcast("export", subset, "-o", out, "--format", "axolotl")
    assert done.code == 0
    assert done.out.splitlines()[0].split(maxsplit=1) == ["written", f"{out}, {tmp_path / 'data.data.jsonl'}"]
    assert yaml.safe_load(out.read_text())["datasets"][0]["path"] == str(tmp_path / "data.data.jsonl")


def test_export_of_no_format(backcast, subset, tmp_path):
    done = backcast("export", subset, "-o", tmp_path / "x.csv", "--format", "csv")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("backcast: format 'csv': the formats are jsonl, parquet")
