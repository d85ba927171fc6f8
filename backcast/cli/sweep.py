"""backcast sweep"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Columns, Json, columns, show, table


def run(
    model: Annotated[
        str, typer.Argument(help="What to fine-tune: a folder, a hub id, or an open_clip name.")
    ],
    train: Annotated[str, typer.Argument(help="The pool that the subsets were chosen from.")],
    test: Annotated[str, typer.Argument(help="What every run is measured on.")],
    subsets: Annotated[list[Path], typer.Argument(help="Manifests of 'backcast select'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The sweep's folder; finished runs are kept.")],
    seeds: Annotated[int, typer.Option(help="Runs of each subset.", min=1)] = 3,
    full: Annotated[bool, typer.Option(help="Also train on the whole pool.")] = True,
    steps: Annotated[int, typer.Option(help="Steps of each run.", min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr")] = 1e-3,
    workers: Annotated[int | None, typer.Option(help="Processes; by default the cores.", min=1)] = None,
    column: Columns = None,
    json: Json = False,
) -> None:
    """Fine-tune on subsets and measure each run; resumes where it was stopped."""
    from backcast.data import read_examples
    from backcast.finetune import FinetuneConfig, Run
    from backcast.finetune import sweep as run_all
    from backcast.selectors import Manifest

    pool, tested = read_examples(train, columns(column)), read_examples(test, columns(column))
    manifests = [Manifest.load(path) for path in subsets]
    runs = [Run.on_subset(manifest, pool, seed) for manifest in manifests for seed in range(seeds)]
    runs += [Run.on_all(pool, seed) for seed in range(seeds)] if full else []
    config = FinetuneConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    rows = run_all(model, pool, tested, runs, out, config=config, workers=workers)
    if json:
        show({"results": str(out / "results.jsonl"), "rows": rows}, True)
    else:
        table(rows)
        print(f"\n{len(rows)} runs in {out / 'results.jsonl'}; next: backcast invert")
