"""backcast select"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backcast.cli.options import Columns, Json, Seed, SkipBroken, columns, show
from backcast.errors import InputError

if TYPE_CHECKING:
    from backcast.manifests import Manifest
    from backcast.multimodal.parts import Parts


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
            help="random, top_k, round_robin, facility_location or modality_balance; filters (dedup, image_needed, "
            "one_sided_harm) go before: 'dedup | top_k'.",
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
        Path | None, typer.Option(metavar="FILE", help="Step by step: the file of 'backcast score'.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", help="Step by step: the pool's store, for dedup and facility_location."
        ),
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file of 'backcast split' over the whole pool, for modality_balance, image_needed and "
            "one_sided_harm; the manifest tells the chosen rows' parts.",
        ),
    ] = None,
    column: Columns = None,
    skip_broken: SkipBroken = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Choose a subset within a budget and write its manifest.

    Either in one shot from --model, --train and --target, or step by step: from --scores (and --store).
    """
    if scores and not (model or train or target or column):
        manifest = _from_scores(scores, store, parts, out, budget, method, seed)
    elif model and train and target and not (scores or store):
        from backcast.recipes import select_subset

        manifest = select_subset(
            model,
            train,
            target,
            out,
            budget=budget,
            method=method,
            seed=seed,
            parts=parts,
            columns=columns(column),
            skip_broken=skip_broken,
        )
    else:
        raise InputError("give either --scores (and --store), or --model with --train and --target")
    method = manifest.meta["selector"]["method"]
    found: dict[str, Any] = {
        "subset": str(out),
        "examples": len(manifest),
        "method": method,
        "budget": budget,
    }
    if dropped := manifest.meta["dropped"]["reasons"]:
        found["dropped"] = dropped if json else ", ".join(map(_told, dropped, dropped.values()))
    show(found, json)


def _told(name: str, reasons: Mapping[str, int]) -> str:
    return f"{name} ({', '.join(f'{reason}: {count}' for reason, count in reasons.items())})"


def _from_scores(
    scores: Path, store: Path | None, parts: Path | None, out: Path, budget: str, method: str, seed: int
) -> Manifest:
    from backcast.attribution import Scores, SketchStore
    from backcast.selectors import select

    features = SketchStore.open(store) if store else None
    split = _load_parts(parts) if parts else None
    return select(Scores.load(scores), budget, method, seed, features=features, parts=split).save(out)


def _load_parts(path: Path) -> Parts:
    from backcast.multimodal.parts import Parts  # seconds, which only a choice by parts has to wait

    return Parts.load(path)
