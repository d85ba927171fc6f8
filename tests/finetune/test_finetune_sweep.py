"""A sweep: what its workers find is what this process finds, and nothing is made twice."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from backcast.attribution import Checkpoint
from backcast.attribution.collect import visiting
from backcast.data import Examples
from backcast.data.corpora import DigitsSizes, digits_corpus
from backcast.errors import InputError
from backcast.files import sha256, sha256_file
from backcast.finetune import FinetuneConfig, Run, finetune, sweep
from backcast.multimodal import load_task
from backcast.multimodal.mini_clip import write_mini_clip
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
    table = (finished.out / "results.jsonl").read_text()
    assert [json.loads(line) for line in table.splitlines()] == finished.rows


def test_a_finished_run_is_never_made_again(finished, corpus, model, start, tmp_path):
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    made, table = files(out), (out / "results.jsonl").read_bytes()
    args = {"config": CONFIG, "start": start, "workers": 1}
    assert len(made) == 3
    assert sweep(model, corpus.pool, corpus.test, finished.runs, out, **args) == finished.rows
    assert files(out) == made
    assert (out / "results.jsonl").read_bytes() == table

    # One is lost and one is new: two are made.
    lost = min(made)
    (out / "runs" / lost).unlink()
    more = [*finished.runs, replace(finished.runs[0], seed=2)]
    rows = sweep(model, corpus.pool, corpus.test, more, out, **args)
    assert [r["metric"] for r in rows[:3]] == [r["metric"] for r in finished.rows]
    after = files(out)
    assert len(after) == 4
    assert [name for name in made if after[name] != made[name]] == [lost]


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


@pytest.mark.parametrize("what", ["nothing", "weights", "start", "pool", "test", "config", "rows", "seed"])
def test_a_run_is_told_apart_by_all_that_it_depends_on(what, finished, corpus, model, start, tmp_path):
    """With one of them changed a finished run is not found, and a worker starts."""
    out = Path(shutil.copytree(finished.out, tmp_path / "out"))
    folder = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    pool, test, config, (run, *_) = corpus.pool, corpus.test, CONFIG, finished.runs
    if what == "weights":
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
    elif what == "config":
        config = config.model_copy(update={"weight_decay": 0.1})
    elif what == "rows":
        run = replace(run, rows=run.rows[::-1])
    elif what == "seed":
        run = replace(run, seed=9)

    with no_worker_survives():
        if what == "nothing":  # not even the folder's place matters, only what is in it
            rows = sweep(str(folder), pool, test, [run], out, config=config, start=start, workers=1)
            assert rows == finished.rows[:1]
        else:
            with pytest.raises(
                InputError, match=r"a worker process died.*fewer workers, finished runs are kept"
            ):
                sweep(str(folder), pool, test, [run], out, config=config, start=start, workers=1)
    assert files(out) == files(finished.out)


def test_a_run_that_explodes_is_named(corpus, model, tmp_path):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "steps": 20})
    runs = [Run("top_k", "25%", tuple(range(10)), 7)]
    with pytest.raises(InputError, match=r"^top_k, 25%, seed 7: the loss is (nan|inf) at step \d+; lower"):
        sweep(model, corpus.pool, corpus.test, runs, tmp_path / "out", config=config, workers=1)
    assert not (tmp_path / "out").exists()


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
    assert tuple(pool[i].id for i in run.rows) == manifest.ids
    # The same examples at other places: a part of the pool, in another order.
    rows = sorted(run.rows, reverse=True)
    part = Run.on_subset(manifest, pool[rows], seed=3)
    assert tuple(pool[rows][i].id for i in part.rows) == manifest.ids
    with pytest.raises(InputError, match=r"subset\.jsonl: does not fit its pool; see 'backcast check'"):
        Run.on_subset(manifest, corpus.test, 0)
