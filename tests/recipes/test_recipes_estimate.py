"""What a run would take, against what it takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import image_files, pairs, text_files, write_jsonl

from backcast.attribution import Scores
from backcast.data import read_examples
from backcast.errors import InputError
from backcast.recipes.selection.estimate import SAMPLE, estimate
from backcast.recipes.selection.one_shot import select_subset
from backcast.recipes.selection.run_config import RunConfig


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Any:
    """A pool of more rows than are looked at, short and long ones by turns."""
    own = text_files(tmp_path_factory.mktemp("text"))
    rows = [
        {**row, "response": row["response"] * (1 + i % 3)} for i, row in enumerate(pairs(3 * SAMPLE // 2, 0))
    ]
    write_jsonl(own.pool, rows)
    return own


def config(files: Any, folder: Path, **changed: Any) -> RunConfig:
    own = {"model": str(files.model), "pool": str(files.pool), "target": str(files.target)}
    return RunConfig.of({**own, "out": str(folder / "subset.jsonl"), **changed})


def test_disk_is_exact_and_time_about_right(files, tmp_path):
    """Of the processor's seconds, not the clock's: the machine may be busy."""
    run = config(files, tmp_path, sketch={"dim": 256, "dtype": "int8"}, method="top_k")
    estimate(run)  # what only the first load of a model takes
    found = estimate(run, time.process_time)
    assert not any(tmp_path.iterdir())

    began = time.process_time()
    select_subset(run)
    took = time.process_time() - began
    assert found.total("seconds") / 8 < took < found.total("seconds") * 8  # caches are shared, too

    sketches = tmp_path / "subset.sketches"
    steps = {step.step: step for step in found.steps}
    assert steps["sketches of the pool"].disk == pytest.approx(held(sketches / "pool"), rel=0.01)
    assert steps["sketches of the target"].disk == pytest.approx(held(sketches / "target"), rel=0.01)
    assert steps["scores"].disk == pytest.approx((sketches / "scores.safetensors").stat().st_size, rel=0.01)
    assert found.total("disk") == pytest.approx(held(sketches), rel=0.01)
    assert steps["data"].rows == 3 * SAMPLE // 2 + 6
    assert found.unknown == ()
    assert steps["model"].memory < found.total("memory") < found.free["memory"]


def test_pictures_and_several_targets(tmp_path):
    files = image_files(tmp_path / "images")
    run = config(
        files, tmp_path, target={"a": str(files.target), "b": str(files.test)}, method="dedup | top_k"
    )
    found = estimate(run)
    assert {step.step: step.rows for step in found.steps}["sketches of the target"] == 20
    assert found.unknown == ("dedup",)
    assert all(value > 0 for value in found.free.values())


def test_a_row_that_is_looked_at_and_wrong(files, tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", [*pairs(3, 0), {"prompt": "a", "response": 5}])
    with pytest.raises(InputError, match=r"bad\.jsonl:4 \(row 3\): 'response' must be text"):
        estimate(config(files, tmp_path, pool=str(bad)))
    with pytest.raises(InputError, match="score: method"):
        estimate(config(files, tmp_path, score={"method": "bm25"}))


def test_step_by_step_there_is_only_the_choice(files, tmp_path):
    pool = read_examples(files.pool).index
    scores = Scores(np.zeros((len(pool), 3), np.float32), pool, ("a", "b", "c"), "loss")
    scores.save(tmp_path / "scores")
    found = estimate(RunConfig.of({"scores": str(tmp_path / "scores"), "method": "top_k"}))
    assert [(step.step, step.rows) for step in found.steps] == [
        ("scores", 3 * len(pool)),
        ("choice", len(pool)),
    ]
    assert found.steps[0].memory == scores.values.nbytes
    assert found.total("disk") == 0
