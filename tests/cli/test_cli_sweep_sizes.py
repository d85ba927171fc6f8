"""`backcast sweep --sizes`: random subsets of its own, resumed from wherever the folder was moved to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backcast.data import read_examples
from backcast.files import read_json, sha256_file
from backcast.manifests import Manifest
from backcast.scaling import read_results
from backcast.selectors import select


def words(folder: Path) -> list[object]:
    return [
        *("sweep", folder / "llama", folder / "pool.jsonl", folder / "test.jsonl", "--sizes", "10%,20,25%"),
        *("--seeds", 2, "--steps", 1, "--batch-size", 3, "--workers", 1, "-o", folder / "sweep", "--no-full"),
    ]


@pytest.fixture
def folder(text, tmp_path) -> Path:
    """A user's folder with all that a sweep needs."""
    return Path(shutil.copytree(Path(text.model).parent, tmp_path / "home"))


def test_random_subsets_of_each_size_and_seed(backcast, folder, tmp_path):
    found = backcast(*words(folder), "--json").json
    rows: list[dict[str, Any]] = found["rows"]
    assert [(row["selector"], row["budget"], row["n"], row["seed"]) for row in rows] == [
        ("random", budget, n, seed) for budget, n in (("10%", 4), ("25%", 10), ("20", 20)) for seed in (0, 1)
    ]
    pool = read_examples(folder / "pool.jsonl")
    for row in rows:
        path = folder / "sweep" / row["manifest"]
        assert path == folder / "sweep" / "subsets" / f"random-{row['n']}-{row['seed']}.jsonl"
        assert row["manifest_sha256"] == sha256_file(path)
        expected = select(pool.index, row["budget"], "random", row["seed"]).rows
        assert Manifest.load(path).ids == tuple(expected.ids)
        kept = read_json(folder / "sweep" / row["file"])
        assert (kept["seed"], kept["manifest"], kept["config"]["steps"]) == (row["seed"], row["manifest"], 1)
        assert kept["versions"].keys() == {"python", "backcast", "torch", "transformers", "numpy"}
    assert [run.n for run in read_results(folder / "sweep")] == [4, 4, 10, 10, 20, 20]

    # All of it moved away, and the same command there: nothing is made again, and no path is the old one's.
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    times = {path: path.stat().st_mtime_ns for path in moved.rglob("*.json*") if path.name != "results.jsonl"}
    before = (moved / "sweep" / "results.jsonl").read_text()
    done = backcast(*words(moved))
    assert done.code == 0
    assert "6 runs in" in done.out
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (moved / "sweep" / "results.jsonl").read_text() == before
    assert str(folder) not in before

    # Other settings are refused in a line.
    done = backcast(*words(moved), "--lr", "0.5")
    assert (done.code, done.out) == (2, "")
    (line,) = [line for line in done.err.splitlines() if line.startswith("backcast: ")]
    assert f"{moved / 'sweep'}: its runs were made with learning_rate 0.001, not 0.5; give" in line

    # A pool that has changed no longer fits the manifests.
    lines = (moved / "pool.jsonl").read_text().splitlines()
    (moved / "pool.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    done = backcast(*words(moved))
    assert done.code == 2
    assert f"does not fit {moved / 'pool.jsonl'}; see 'backcast check'" in done.err


def test_runs_that_failed_are_told_and_kept(backcast, folder):
    """A rate beyond all bounds: the table has the reason, the last line too, and the exit code is that of bad input."""
    done = backcast(*words(folder), "--lr", "1e30", "--steps", 9, "--json")
    assert (done.code, done.out) == (2, "")
    (line,) = [line for line in done.err.splitlines() if line.startswith("backcast: ")]
    assert line.startswith("backcast: random, 10%, seed 0: ")
    assert "lower the learning rate (6 of 6 runs failed; the others are kept, and the same sweep" in line
    rows = [json.loads(row) for row in (folder / "sweep" / "results.jsonl").read_text().splitlines()]
    assert [row["state"] for row in rows] == ["failed"] * 6
    assert all("lower the learning rate" in row["error"] for row in rows)


def test_bad_words(backcast, folder):
    cases = [
        (["--sizes", "4,x"], "budget 'x': give a count"),
        (["--sizes", "4,4000"], "budget '4000': the pool holds only 40 examples"),
        (["--on", "moon"], "on='moon': runs can be made on processes or ray"),
    ]
    for more, message in cases:
        done = backcast(*words(folder), *more)
        assert (done.code, done.out) == (2, ""), more
        assert message in done.err
