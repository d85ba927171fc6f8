"""Fine-tunes on many subsets, in processes or on Ray, each run kept as soon as it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backcast.attribution import Checkpoint
from backcast.attribution.collect import visiting
from backcast.data import Examples
from backcast.errors import InputError
from backcast.files import read_json, sha256, sha256_file, write_atomic, write_json
from backcast.finetune.places import Place, Processes, Ray, outcomes
from backcast.finetune.runs import Outcome, Run
from backcast.finetune.train import FinetuneConfig
from backcast.finetune.worker import Setup, make
from backcast.manifests.manifest import portable_path
from backcast.multimodal import check_same_kind, load_task
from backcast.progress import progress

#: Where runs can be made.
PLACES: dict[str, Callable[[Setup], Place]] = {"processes": Processes, "ray": Ray}


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
    on: str = "processes",
) -> list[dict[str, Any]]:
    """Fine-tune once for each run and measure it on ``test``; finished runs are kept and never made again.

    A run is kept under the hash of all that it depends on, none of it a place, so that a sweep with more budgets or
    seeds adds to the folder, and a folder that was moved resumes. A run that fails does not stop the others; the same
    call makes it again.

    The runs go to processes, between which the threads of this one are split; a script that calls this needs the
    usual ``if __name__ == "__main__":``. On a GPU the largest run goes first, alone, and as many as its peak leaves
    room for share the GPU after it. A run that ran out of memory, or whose process died, is made once more, alone.

    Args:
        model: what to fine-tune, as `load_task` takes it.
        pool: the examples that the runs' rows refer to.
        test: what every run is measured on, by the task's metric.
        runs: see `Run`.
        out: a folder; ``results.jsonl`` in it is the table, and ``runs/`` has a file for each finished run: its
            row, and its versions, configuration and, without a manifest, the rows of the pool.
        config: how each fine-tune runs.
        start: weights to start from instead of the model's own.
        workers: runs at once, at most; by default one a core.
        on: ``"processes"`` of this machine, or ``"ray"``: see `Ray`.

    Returns:
        The table: for each run selector, budget, n, seed, modality, manifest (relative to ``out`` where it lies near)
        and its hash, metric, measure (the metric's name), seconds, device, state and the run's file.

    Raises:
        InputError: a model or data that do not fit; a folder whose runs were made with others; or, when all runs are
            through and the table is written, runs that failed.
    """
    if not runs:
        raise InputError("nothing to sweep: there are no runs; give at least one subset")
    if on not in PLACES:
        raise InputError(f"on={on!r}: runs can be made on {' or '.join(PLACES)}")
    check_same_kind(pool, test)
    out = Path(out)
    config = config or FinetuneConfig()
    data = {
        "model": _identity(model),
        "start": _identity(start.path) if start else None,
        "pool": pool.index.fingerprint,
        "test": test.index.fingerprint,
    }
    settings = config.model_dump()
    _check_same(out, data, settings)
    common = [*data.values(), settings]
    files = [f"runs/{sha256(json.dumps([*common, r.rows, r.seed]))[:16]}.json" for r in runs]
    todo = {file: run for file, run in zip(files, runs, strict=True) if not (out / file).is_file()}
    errors: dict[str, str] = {}
    if todo:
        setup = Setup(sha256(json.dumps(common)), model, start, pool, test, config)
        place = PLACES[on](setup)
        # Here once, for the message: an error in a worker's start only says that the worker died.
        with visiting(load_task(model, pool)[0], start):
            pass
        torch.cuda.empty_cache()
        write_json(out / "sweep.json", {"data": data, "config": settings})
        errors = _make(
            todo, setup, place, workers, out, f"{len(files) - len(todo)} of {len(files)} already made"
        )
    rows = [_row(run, file, errors.get(file), out) for run, file in zip(runs, files, strict=True)]
    write_atomic(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if errors:
        run, error = next((run, errors[file]) for file, run in todo.items() if file in errors)
        raise InputError(
            f"{run}: {error} ({len(errors)} of {len(files)} runs failed; the others are kept, and the same sweep "
            "makes these again)"
        )
    return rows


def _make(
    todo: Mapping[str, Run], setup: Setup, place: Place, workers: int | None, out: Path, already: str
) -> dict[str, str]:
    """Make the runs and write the files of those that finish; file → why, of the others."""
    errors = {}
    names = {run: file for file, run in todo.items()}
    with progress(f"fine-tunes ({already})", len(names)) as done:
        for run, outcome in outcomes(list(names), place, make, workers):
            if outcome.error is None:
                write_json(out / names[run], _kept(run, outcome, setup, out))
            else:
                errors[names[run]] = outcome.error
            done(1)
    return errors


def _check_same(out: Path, data: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse a folder whose runs were made with something else."""
    kept = out / "sweep.json"
    if not kept.is_file() or not any(out.glob("runs/*.json")):
        return
    before = read_json(kept)
    changed = [f"another {name}" for name, value in data.items() if before["data"][name] != value]
    changed += [
        f"{name} {before['config'].get(name)}, not {value}"
        for name, value in config.items()
        if before["config"].get(name) != value
    ]
    if changed:
        raise InputError(
            f"{out}: its runs were made with {'; '.join(changed)}; give what they were made with, or another folder"
        )


def _described(run: Run, out: Path) -> dict[str, Any]:
    manifest = run.manifest and portable_path(str(Path(run.manifest).resolve()), out.resolve())
    return {
        "selector": run.selector,
        "budget": run.budget,
        "n": len(run.rows),
        "seed": run.seed,
        "modality": run.modality,
        "manifest": manifest,
        "manifest_sha256": run.manifest_sha256,
    }


def _kept(run: Run, outcome: Outcome, setup: Setup, out: Path) -> dict[str, Any]:
    """What a finished run's file says; the rows, where there is no manifest to say them and they are not all."""
    return {
        **_described(run, out),
        "rows": None if run.manifest or len(run.rows) == len(setup.pool) else list(run.rows),
        "metric": outcome.metric,
        "measure": outcome.measure,
        "seconds": outcome.seconds,
        "device": outcome.device,
        "threads": outcome.threads,
        "versions": outcome.versions,
        "config": setup.config.model_dump(),
    }


def _row(run: Run, file: str, error: str | None, out: Path) -> dict[str, Any]:
    """A run's row of the table; what it is called is this sweep's, what came of it is its file's."""
    kept = {} if error else read_json(out / file)
    return {
        **_described(run, out),
        **{name: kept.get(name) for name in ("metric", "measure", "seconds", "device")},
        **({"state": "failed", "error": error} if error else {"state": "finished", "file": file}),
    }


def _identity(place: str) -> Any:
    """What tells two models or checkpoints apart: the SHA-256 of a file or of a folder's files, or a hub id's name."""
    path = Path(place)
    if not path.is_dir():
        return sha256_file(path) if path.is_file() else place
    return {file.name: sha256_file(file) for file in sorted(path.iterdir()) if file.is_file()}
