"""backcast select"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backcast.cli.options import Columns, Json, Seed, columns, show
from backcast.errors import InputError

if TYPE_CHECKING:
    from backcast.selectors import Manifest


def run(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The manifest to write, *.jsonl.")
    ] = Path("subset.jsonl"),
    budget: Annotated[str, typer.Option(metavar="N|P%", help="A count, or a percentage of the pool.")] = "5%",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            metavar="METHOD",
            help="random, top_k, round_robin or facility_location; a filter goes before: 'dedup | top_k'.",
        ),
    ] = "round_robin",
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="One shot: a folder, a hub id, or an open_clip name."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(metavar="DATA", help="One shot: the pool to choose from.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="DATA", help="One shot: examples of what is wanted.")
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="From parts: the file of 'backcast score'.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="From parts: the pool's store, for dedup and facility_location."),
    ] = None,
    column: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Choose a subset within a budget and write its manifest.

    Either in one shot from --model, --train and --target, or from parts: --scores (and --store).
    """
    if scores and not (model or train or target or column):
        manifest = _from_parts(scores, store, out, budget, method, seed)
    elif model and train and target and not (scores or store):
        from backcast.recipes import select_subset

        manifest = select_subset(
            model, train, target, out, budget=budget, method=method, seed=seed, columns=columns(column)
        )
    else:
        raise InputError("give either --scores (and --store), or --model with --train and --target")
    method = manifest.meta["selector"]["method"]
    show({"subset": str(out), "examples": len(manifest), "method": method, "budget": budget}, json)


def _from_parts(scores: Path, store: Path | None, out: Path, budget: str, method: str, seed: int) -> Manifest:
    from backcast.attribution import Scores, SketchStore
    from backcast.selectors import select

    features = SketchStore.open(store) if store else None
    return select(Scores.load(scores), budget, method, seed, features=features).save(out)
