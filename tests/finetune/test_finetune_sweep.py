"""A sweep: what its workers find is what this process finds, and nothing is made twice."""

from __future__ import annotations

import json
import multiprocessing
import platform
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backcast.attribution import Checkpoint
from backcast.attribution.collect import visiting
from backcast.data import Examples
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.errors import InputError
from backcast.files import read_json, sha256, sha256_file, write_json
from backcast.finetune import FinetuneConfig, Run, finetune, sweep
from backcast.multimodal import load_task
from backcast.multimodal.mini_clip import write_mini_clip
from backcast.scaling import read_results
from backcast.selectors import select

CONFIG = FinetuneConfig(steps=3, batch_size=8, learning_rate=1e-2, warmup_steps=1)


@pytest.fixture(scope="module")
def corpus():
    return digits_corpus(0, DigitsSizes(warmup=10, target=10, pool=40, test=30))


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory) -> str:
    captions = sorted({example.fields["caption"] for example in corpus.target})
    return str(write_mini_clip(tmp_path_factory.mktemp("model") / "clip", captions))


@pytest.fixture(scope="module")
def start(corpus, model, tmp_path_factory) -> Checkpoint:
    """Weights to start from, other than the folder's own."""
    network, task = load_task(model, corpus.pool)
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    return finetune(network, task, corpus.warmup, CONFIG, 0, {3: path})[0]


def here(model: str, start: Checkpoint | None, corpus, run: Run) -> float:
    """The run, made in this process."""
    network, task = load_task(model, corpus.pool)
    with visiting(network, start):
        finetune(network, task, corpus.pool[list(run.rows)], CONFIG, run.seed)
        return task.evaluate(network, corpus.test)


def table(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def three() -> int:
    return 3


def files(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}


@dataclass
class Finished:
    """A sweep of three runs by two workers."""

    out: Path
    runs: list[Run]
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def finished(corpus, model, start, tmp_path_factory) -> Finished:
    out = tmp_path_factory.mktemp("sweep")
    some = tuple(range(0, 24, 2))
    runs = [Run("top_k", "12", some, 0), Run("top_k", "12", some, 1), Run.on_all(corpus.pool, 0)]
    rows = sweep(model, corpus.pool, corpus.test, runs, out, config=CONFIG, start=start, workers=2)
    return Finished(out, runs, rows)


def test_two_workers_find_what_one_process_finds(finished, corpus, model, start):
    assert [(r["selector"], r["budget"], r["n"], r["seed"]) for r in finished.rows] == [
        ("top_k", "12", 12, 0),
        ("top_k", "12", 12, 1),
        ("full", "100%", 40, 0),
    ]
    assert {r["measure"] for r in finished.rows} == {"retrieval@1"}
    # With three runs for two workers, one of them made a second run: it must have started from the same weights.
    assert [r["metric"] for r in finished.rows] == [here(model, start, corpus, run) for run in finished.runs]
    assert table(finished.out) == finished.rows


def test_a_finished_run_is_never_made_again(finished, corpus, model, start, tmp_path, monkeypatch):
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    made, written = files(out), (out / "results.jsonl").read_bytes()
    args = {"config": CONFIG, "start": start, "workers": 1}
    assert len(made) == 3
    assert sweep(model, corpus.pool, corpus.test, finished.runs, out, **args) == finished.rows
    assert files(out) == made
    assert (out / "results.jsonl").read_bytes() == written

    # One is lost and one is new: two are made. A lone worker has all the threads.
    monkeypatch.setattr(torch, "get_num_threads", three)
    lost = min(made)
    (out / "runs" / lost).unlink()
    more = [*finished.runs, replace(finished.runs[0], seed=2)]
    rows = sweep(model, corpus.pool, corpus.test, more, out, **args)
    assert [r["metric"] for r in rows[:3]] == [r["metric"] for r in finished.rows]
    after = files(out)
    assert len(after) == 4
    again = [name for name in after if after[name] != made.get(name)]
    assert lost in again
    assert [read_json(out / "runs" / name)["threads"] for name in again] == [3, 3]


@contextmanager
def no_worker_survives() -> Iterator[None]:
    """Kill every worker process as soon as it is there."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.01):
            for child in multiprocessing.active_children():
                child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


@pytest.mark.parametrize("what", ["nothing", "rows", "seed"])
def test_a_run_is_told_apart_by_its_rows_and_its_seed(what, finished, corpus, model, start, tmp_path):
    """With one of them changed a finished run is not found, and a worker starts."""
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    folder = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    run = finished.runs[0]
    if what == "rows":
        run = replace(run, rows=run.rows[::-1])
    elif what == "seed":
        run = replace(run, seed=9)

    args: dict[str, Any] = {"config": CONFIG, "start": start, "workers": 1}
    with no_worker_survives():
        if what == "nothing":  # not even the folder's place matters, only what is in it
            rows = sweep(str(folder), corpus.pool, corpus.test, [run], out, **args)
            assert rows == finished.rows[:1]
        else:
            message = rf"^top_k, 12, seed {run.seed}: its process died, most often for want of memory"
            with pytest.raises(InputError, match=message):
                sweep(str(folder), corpus.pool, corpus.test, [run], out, **args)
            (row,) = table(out)
            assert (row["state"], row["metric"]) == ("failed", None)
    assert files(out) == files(finished.out)


@pytest.mark.parametrize("what", ["model", "start", "pool", "test", "steps 3, not 4"])
def test_a_folder_of_other_runs_is_refused(what, finished, corpus, model, start, tmp_path):
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    folder = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    pool, test, config = corpus.pool, corpus.test, CONFIG
    if what == "model":
        weights = load_file(folder / "open_clip_model.safetensors")
        save_file({k: v * 1.5 for k, v in weights.items()}, folder / "open_clip_model.safetensors")
    elif what == "start":
        weights = load_file(start.path)
        save_file({k: v * 1.5 for k, v in weights.items()}, tmp_path / "start.safetensors")
        start = replace(start, path=str(tmp_path / "start.safetensors"))
    elif what == "pool":
        pool = pool[:39]
    elif what == "test":
        test = test[1:]
    else:
        config = config.model_copy(update={"steps": 4})
    other = what if " " in what else f"another {what}"
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    with pytest.raises(
        InputError,
        match=rf"^{out}: its runs were made with {other}; give what they were made with, or another",
    ):
        sweep(str(folder), pool, test, finished.runs, out, config=config, start=start, workers=1)
    assert {path: path.read_bytes() for path in out.rglob("*.json*")} == before


def test_a_folder_without_finished_runs_takes_other_settings(finished, corpus, model, start, tmp_path):
    """After a sweep in which all failed; the runs of another are then found by what they depend on."""
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    write_json(out / "sweep.json", {"data": {}, "config": {}})
    shutil.move(out / "runs", tmp_path / "runs")
    with no_worker_survives(), pytest.raises(InputError, match="its process died"):
        sweep(model, corpus.pool, corpus.test, finished.runs[:1], out, config=CONFIG, start=start, workers=1)
    shutil.move(tmp_path / "runs", out / "runs")
    rows = sweep(model, corpus.pool, corpus.test, finished.runs, out, config=CONFIG, start=start)
    assert rows == finished.rows


def test_a_finished_run_keeps_what_made_it(finished):
    """Beside its row: the versions, the configuration and, as there are no manifests, the examples."""
    for row, rows in zip(finished.rows, [list(range(0, 24, 2))] * 2 + [None], strict=True):
        kept = read_json(finished.out / row["file"])
        assert {name: kept.pop(name) for name in row.keys() & kept.keys()} == {
            name: value for name, value in row.items() if name not in ("state", "file")
        }
        assert kept.pop("config") == CONFIG.model_dump()
        assert kept.pop("rows") == rows
        assert kept.pop("threads") == max(1, torch.get_num_threads() // 2)
        found = kept.pop("versions")
        assert found.keys() == {"python", "backcast", "torch", "transformers", "numpy"}
        assert (found["python"], found["numpy"]) == (platform.python_version(), np.__version__)
        assert torch.__version__.split("+")[0] == found["torch"].split("+")[0]
        assert not kept
        assert row["seconds"] > 0
        assert row["device"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")


def test_a_runs_file_is_named_by_the_hash_of_all_that_it_depends_on(finished, corpus, model, start):
    """Spelt out, so that no change loses the finished runs of older folders: what a run is called is not in it."""
    weights = {path.name: sha256_file(path) for path in sorted(Path(model).iterdir()) if path.is_file()}
    data = [corpus.pool.index.fingerprint, corpus.test.index.fingerprint]
    common = [weights, sha256_file(start.path), *data, CONFIG.model_dump()]
    keys = [sha256(json.dumps([*common, list(run.rows), run.seed])) for run in finished.runs]
    assert set(files(finished.out)) == {f"{key[:16]}.json" for key in keys}


def test_a_modality_is_a_column_and_no_reason_to_run_again(finished, corpus, model, start, tmp_path):
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    run = replace(finished.runs[0], selector="image-driven", modality="image")
    with no_worker_survives():
        rows = sweep(model, corpus.pool, corpus.test, [run], out, config=CONFIG, start=start, workers=1)
    assert rows == [{**finished.rows[0], "selector": "image-driven", "modality": "image"}]
    assert [row["modality"] for row in finished.rows] == [None, None, None]


# ------------------------------------------------------------------ runs that fail


def test_failed_runs_leave_the_others_alone(finished, corpus, model, start, tmp_path):
    """The table holds all, the law reads the finished ones, and the same sweep makes the failed ones again."""
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    empty, beyond, lost = Run("top_k", "0", (), 0), Run("top_k", "1", (10**6,), 0), finished.runs[0]
    (out / finished.rows[0]["file"]).unlink()
    args: dict[str, Any] = {"config": CONFIG, "start": start, "workers": 1}
    with pytest.raises(
        InputError,
        match=r"^top_k, 0, seed 0: nothing to train on.* \(2 of 3 runs failed; the others are kept",
    ):
        sweep(model, corpus.pool, corpus.test, [empty, beyond, lost], out, **args)
    rows = table(out)
    assert [(row["state"], row["n"]) for row in rows] == [("failed", 0), ("failed", 1), ("finished", 12)]
    assert rows[1]["error"].startswith("IndexError: ")
    assert rows[2]["metric"] == finished.rows[0]["metric"]
    assert [run.value for run in read_results(out)] == [rows[2]["metric"]]
    assert len(files(out)) == 3
    with no_worker_survives():
        assert sweep(model, corpus.pool, corpus.test, [lost], out, **args) == rows[2:]


# ------------------------------------------------------------------ where they are made


def test_ray_makes_the_same_runs(finished, corpus, model, start, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    args: dict[str, Any] = {"config": CONFIG, "start": start, "on": "ray"}
    rows = sweep(model, corpus.pool, corpus.test, finished.runs, tmp_path / "out", **args)
    assert [row["metric"] for row in rows] == [row["metric"] for row in finished.rows]


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_named(corpus, model, tmp_path):
    runs = [Run.on_all(corpus.pool, 0)]
    with pytest.raises(InputError, match=r"Ray is not installed.*pip install 'backcast\[ray\]'"):
        sweep(model, corpus.pool, corpus.test, runs, tmp_path / "out", on="ray")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ found before any worker starts


def test_bad_input_starts_no_worker(corpus, model, start, tmp_path):
    pool, test, runs = corpus.pool, corpus.test, [Run.on_all(corpus.pool, 0)]
    text = Examples.from_fields([{"text": "not a picture"}])
    cases = [
        (r"nothing to sweep", (model, pool, test, []), {}),
        (r"both must be of one kind", (model, pool, text, runs), {}),
        (
            r"no such checkpoint",
            (model, pool, test, runs),
            {"start": replace(start, path="gone.safetensors")},
        ),
        (r"gone: not a folder", ("gone", pool, test, runs), {}),
        (r"on='moon': runs can be made on processes or ray", (model, pool, test, runs), {"on": "moon"}),
    ]
    for message, given, options in cases:
        with pytest.raises(InputError, match=message):
            sweep(*given, tmp_path / "out", config=CONFIG, **options)
        assert not multiprocessing.active_children()
        assert not (tmp_path / "out").exists()


def test_a_run_of_a_manifest_is_its_rows(corpus, tmp_path):
    pool = corpus.pool
    manifest = select(pool.index, "25%", "random", 5).save(tmp_path / "subset.jsonl")
    run = Run.on_subset(manifest, pool, seed=3)
    assert (run.selector, run.budget, run.seed) == ("random", "25%", 3)
    path = tmp_path / "subset.jsonl"
    assert (run.manifest, run.manifest_sha256) == (str(path), sha256_file(path))
    assert tuple(pool[i].id for i in run.rows) == manifest.ids
    # The same examples at other places: a part of the pool, in another order.
    rows = sorted(run.rows, reverse=True)
    part = Run.on_subset(manifest, pool[rows], seed=3)
    assert tuple(pool[rows][i].id for i in part.rows) == manifest.ids
    with pytest.raises(InputError, match=r"subset\.jsonl: does not fit its pool; see 'backcast check'"):
        Run.on_subset(manifest, corpus.test, 0)
