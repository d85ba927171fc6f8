"""backcast score"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Json, show


def run(
    train: Annotated[Path, typer.Argument(help="The training examples' store.")],
    target: Annotated[Path, typer.Argument(help="The wanted examples' store, collected with --like TRAIN.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The scores' file.")],
    method: Annotated[str, typer.Option("--method", "-m", help="tracin, grad_dot or grad_cos.")] = "tracin",
    cosine: Annotated[bool, typer.Option(help="tracin: normalise every gradient.")] = True,
    by_source: Annotated[bool, typer.Option(help="One score for each source of the target.")] = False,
    json: Json = False,
) -> None:
    """Score training examples by what they do for the wanted ones."""
    from backcast.attribution import SketchStore, attribute

    wanted = SketchStore.open(target)
    params = {"cosine": cosine} if method == "tracin" else {}
    groups = wanted.rows.sources if by_source else None
    scores = attribute(SketchStore.open(train), wanted, method, groups=groups, **params)
    scores.save(out)
    n, m = scores.values.shape
    show({"scores": str(out), "examples": n, "targets": m, "method": method}, json)
