"""backcast sweep"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Columns, Json, columns, show, table
from backcast.errors import InputError


def run(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="What to fine-tune: a folder, a hub id, or an open_clip name."),
    ],
    train: Annotated[
        str, typer.Argument(metavar="TRAIN", help="The pool that the subsets were chosen from.")
    ],
    test: Annotated[str, typer.Argument(metavar="TEST", help="What every run is measured on.")],
    subsets: Annotated[list[Path], typer.Argument(metavar="SUBSET", help="Manifests of 'backcast select'.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="The sweep's; finished runs are kept in it.")
    ],
    seeds: Annotated[int, typer.Option(metavar="N", help="Runs of each subset.", min=1)] = 3,
    full: Annotated[bool, typer.Option(help="Also train on the whole pool.")] = True,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of each run.", min=1)] = 100,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Examples in a step.", min=1)] = 64,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", metavar="RATE", help="AdamW's, at its peak.")
    ] = 1e-3,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes; by default the cores.", min=1)
    ] = None,
    column: Columns = None,
    json: Json = False,
) -> None:
    """Fine-tune on subsets, measure each run; resumes when stopped.

    Further subsets of the same selector and size count as further seeds: random ones, drawn anew.
    """
    from backcast.data import read_examples
    from backcast.finetune import FinetuneConfig, Run
    from backcast.finetune import sweep as run_all
    from backcast.selectors import Manifest

    if not learning_rate > 0:
        raise InputError(f"--learning-rate {learning_rate:g}: it must be above zero")
    manifests = [Manifest.load(path) for path in subsets]
    pool, tested = read_examples(train, columns(column)), read_examples(test, columns(column))
    runs: list[Run] = []
    for manifest in manifests:
        first = Run.on_subset(manifest, pool, 0)
        made = sum((r.selector, len(r.rows)) == (first.selector, len(first.rows)) for r in runs)
        runs += [replace(first, seed=made + seed) for seed in range(seeds)]
    runs += [Run.on_all(pool, seed) for seed in range(seeds)] if full else []
    config = FinetuneConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    rows = run_all(model, pool, tested, runs, out, config=config, workers=workers)
    results = out / "results.jsonl"
    if json:
        show({"results": str(results), "rows": rows}, True)
    else:
        table(rows)
        print(f"\n{len(rows)} runs in {results}; next: backcast invert {results} --target ...")
