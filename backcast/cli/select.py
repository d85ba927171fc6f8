"""backcast select"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Columns, Json, Seed, columns, show
from backcast.errors import InputError


def run(
    out: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write, *.jsonl.")] = Path(
        "subset.jsonl"
    ),
    budget: Annotated[str, typer.Option(help="A count or a percentage of the pool.")] = "5%",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="random, top_k, round_robin, facility_location; a filter goes before: 'dedup | top_k'.",
        ),
    ] = "round_robin",
    model: Annotated[
        str | None, typer.Option(help="One shot: a folder, a hub id, or an open_clip name.")
    ] = None,
    train: Annotated[str | None, typer.Option(help="One shot: the pool to choose from.")] = None,
    target: Annotated[str | None, typer.Option(help="One shot: examples of what is wanted.")] = None,
    scores: Annotated[Path | None, typer.Option(help="From parts: a file of 'backcast score'.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="From parts: the pool's store, for dedup and facility_location."),
    ] = None,
    column: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Choose a subset within a budget and write its manifest."""
    if scores is not None and model is None:
        manifest = _from_parts(scores, store, out, budget, method, seed)
    elif scores is None and model and train and target:
        from backcast.recipes import select_subset

        manifest = select_subset(
            model, train, target, out, budget=budget, method=method, seed=seed, columns=columns(column)
        )
    else:
        raise InputError("give either --scores, or --model with --train and --target")
    show({"subset": str(out), "examples": len(manifest), "method": method, "budget": budget}, json)


def _from_parts(scores: Path, store: Path | None, out: Path, budget: str, method: str, seed: int):  # type: ignore[no-untyped-def]
    from backcast.attribution import Scores, SketchStore
    from backcast.selectors import select

    features = SketchStore.open(store) if store else None
    return select(Scores.load(scores), budget, method, seed, features=features).save(out)
