"""Fine-tunes on many subsets, in processes, each run kept as soon as it is done."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from backcast.attribution import Checkpoint
from backcast.attribution.collect import visiting
from backcast.data import Examples
from backcast.errors import InputError
from backcast.files import read_json, sha256, sha256_file, write_atomic, write_json
from backcast.finetune.train import FinetuneConfig, finetune
from backcast.manifests import Manifest
from backcast.multimodal import check_same_kind, load_task
from backcast.progress import progress, silence


@dataclass(frozen=True)
class Run:
    """One fine-tune to make: on which examples, and with which seed.

    Attributes:
        selector, budget: what chose the examples, for the table of results.
        rows: positions in the pool.
        seed: of the batches' order and dropout.
        modality: what drives the scores of all of its rows, where that is known: image, text or mixed; for the table.
    """

    selector: str
    budget: str
    rows: tuple[int, ...]
    seed: int
    modality: str | None = None

    @classmethod
    def on_subset(cls, manifest: Manifest, pool: Examples, seed: int) -> Run:
        """A run on a manifest's rows; raises `InputError` when they are not the pool's."""
        try:
            rows = manifest.positions(pool.index).tolist()
        except InputError:
            raise InputError(
                f"{manifest.path}: does not fit {pool.dataset or 'its pool'}; see 'backcast check'"
            ) from None
        asked = manifest.meta["budget"]["asked"]
        return cls(manifest.meta["selector"]["method"], str(asked), tuple(rows), seed)

    @classmethod
    def on_all(cls, pool: Examples, seed: int) -> Run:
        """A run on the whole pool, named ``full``."""
        return cls("full", "100%", tuple(range(len(pool))), seed)


def sweep(
    model: str,
    pool: Examples,
    test: Examples,
    runs: Sequence[Run],
    out: str | Path,
    *,
    config: FinetuneConfig | None = None,
    start: Checkpoint | None = None,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """Fine-tune once for each run and measure it on ``test``; finished runs are kept and never made again.

    A run is kept under the hash of all that it depends on, so that a sweep with more budgets or seeds adds to the
    folder. The runs go to worker processes of one thread each; a script that calls this needs the usual
    ``if __name__ == "__main__":``.

    Args:
        model: what to fine-tune, as `load_task` takes it.
        pool: the examples that the runs' rows refer to.
        test: what every run is measured on, by the task's metric.
        runs: see `Run`.
        out: a folder; ``results.jsonl`` in it is the table.
        config: how each fine-tune runs.
        start: weights to start from instead of the model's own.
        workers: processes; by default the number of cores, or one where there is a GPU.

    Returns:
        The table: for each run selector, budget, n, seed, modality, metric, seconds, and measure, the metric's name.

    Raises:
        InputError: a model or data that do not fit, a run that diverges, or a worker process that was killed.
    """
    if not runs:
        raise InputError("nothing to sweep: there are no runs; give at least one subset")
    check_same_kind(pool, test)
    out = Path(out)
    config = config or FinetuneConfig()
    common = [
        _identity(model),
        _identity(start.path) if start else None,
        pool.index.fingerprint,
        test.index.fingerprint,
        config.model_dump(),
    ]
    files = [out / "runs" / f"{sha256(json.dumps([*common, r.rows, r.seed]))[:16]}.json" for r in runs]
    todo = {file: run for file, run in zip(files, runs, strict=True) if not file.is_file()}
    with progress(f"fine-tunes ({len(files) - len(todo)} of {len(files)} already made)", len(todo)) as done:
        for file, measured in _measure(model, start, pool, test, config, todo, workers):
            write_json(file, measured)
            done(1)
    rows = [
        {
            "selector": r.selector,
            "budget": r.budget,
            "n": len(r.rows),
            "seed": r.seed,
            "modality": r.modality,
            **read_json(file),
        }
        for r, file in zip(runs, files, strict=True)
    ]
    write_atomic(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _measure(
    model: str,
    start: Checkpoint | None,
    pool: Examples,
    test: Examples,
    config: FinetuneConfig,
    todo: dict[Path, Run],
    workers: int | None,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file, result) of each run, as they finish."""
    if not todo:
        return
    # Here once, for the message: an error in a worker's start only says that the worker died.
    with visiting(load_task(model, pool)[0], start):
        pass
    most = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    executor = ProcessPoolExecutor(
        max_workers=min(workers or most, len(todo)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_Worker.start,
        initargs=(model, start, pool, test, config),
    )
    try:
        files = {executor.submit(_Worker.run, run): file for file, run in todo.items()}
        for future in as_completed(files):
            yield files[future], future.result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process died, most often for want of memory; sweep with fewer workers, finished runs are kept"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


class _Worker:
    """What a worker process holds between runs."""

    here: _Worker

    def __init__(
        self, model: str, start: Checkpoint | None, pool: Examples, test: Examples, config: FinetuneConfig
    ) -> None:
        self.model, self.task = load_task(model, pool)
        self.pool, self.test, self.config = pool, test, config
        with visiting(self.model, start):
            self.weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    @classmethod
    def start(cls, *args: Any) -> None:
        # One thread each: spinning threads of several processes on the same cores are many times slower.
        torch.set_num_threads(1)
        threadpool_limits(1)
        silence()
        # An interrupted sweep's workers end at once, without a word.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        cls.here = cls(*args)

    @staticmethod
    def run(run: Run) -> dict[str, Any]:
        self = _Worker.here
        began = time.perf_counter()
        self.model.load_state_dict(self.weights)
        try:
            finetune(self.model, self.task, self.pool[np.array(run.rows)], self.config, run.seed)
            value = self.task.evaluate(self.model, self.test)
            if not math.isfinite(value):
                raise InputError(
                    f"the model's {self.task.metric} is {value} in the end; lower the learning rate"
                )
        except InputError as error:
            raise InputError(f"{run.selector}, {run.budget}, seed {run.seed}: {error}") from None
        return {
            "metric": value,
            "measure": self.task.metric,
            "seconds": round(time.perf_counter() - began, 3),
        }


def _identity(place: str) -> Any:
    """What tells two models or checkpoints apart: the SHA-256 of a file or of a folder's files, or a hub id's name."""
    path = Path(place)
    if not path.is_dir():
        return sha256_file(path) if path.is_file() else place
    return {file.name: sha256_file(file) for file in sorted(path.iterdir()) if file.is_file()}
