"""backcast score"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from backcast.cli.options import Json, show


def run(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="The training examples' store.")],
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="The wanted examples' store, collected with --like TRAIN."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The scores.")],
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="METHOD", help="tracin, grad_dot or grad_cos.")
    ] = "tracin",
    cosine: Annotated[bool, typer.Option(help="tracin: normalise every gradient.")] = True,
    by_source: Annotated[
        bool, typer.Option("--by-source", help="One score for each source of the target, not each example.")
    ] = False,
    json: Json = False,
) -> None:
    """Score training examples by their use for the wanted ones."""
    from backcast.attribution import SketchStore, attribute

    wanted = SketchStore.open(target)
    params: dict[str, Any] = {"cosine": cosine} if method == "tracin" else {}
    groups = wanted.rows.sources if by_source else None
    scores = attribute(SketchStore.open(train), wanted, method, groups=groups, **params)
    scores.save(out)
    n, m = scores.values.shape
    show({"scores": str(out), "examples": n, "targets": m, "method": method}, json)
