"""backcast split"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Checkpoints, Json, checkpoints, show, table


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model that the stores were collected with.")
    ],
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="The training examples' store.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The wanted examples' store.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="A JSON line for each example.")
    ] = Path("split.jsonl"),
    rows: Annotated[
        int, typer.Option(metavar="N", help="How many of the highest scores, and of the lowest.", min=1)
    ] = 6,
    checkpoint: Checkpoints = None,
    json: Json = False,
) -> None:
    """Split the best and the worst scores between image and text.

    The examples are read again from the data that the stores name.
    """
    from backcast.recipes.split_scores import split_scores

    lines = split_scores(model, train, target, rows, checkpoints(checkpoint), out)
    gap = max(line["gap"] for line in lines)
    if json:
        show({"split": str(out), "examples": len(lines), "max_relative_gap": gap}, True)
        return
    table([{key: line[key] for key in ("row", "score", "baseline", "image", "text")} for line in lines])
    print(f"\nscore = baseline + image + text, to {gap:.2%} at worst; with maps in {out}")
