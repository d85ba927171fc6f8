"""backcast split"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Checkpoints, Json, checkpoints, show, table


def run(
    model: Annotated[str, typer.Argument(help="The model that the stores were collected with.")],
    train: Annotated[Path, typer.Argument(help="The training examples' store.")],
    target: Annotated[Path, typer.Argument(help="The wanted examples' store.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A JSON line for each example.")] = Path(
        "split.jsonl"
    ),
    rows: Annotated[int, typer.Option(help="How many of the highest scores, and of the lowest.", min=1)] = 6,
    checkpoint: Checkpoints = None,
    json: Json = False,
) -> None:
    """Split the scores of the best and the worst examples between image and text."""
    from backcast.recipes.split_scores import split_scores

    split = split_scores(model, train, target, rows, checkpoints(checkpoint), out)
    gap = float(split.gap.max())
    if json:
        show({"split": str(out), "examples": len(split.ids), "max_relative_gap": gap}, True)
        return
    table(
        [
            {
                "id": i[:12],
                "score": float(s),
                "baseline": float(b),
                **{m: float(p[k]) for m, p in split.parts.items()},
            }
            for k, (i, s, b) in enumerate(zip(split.ids, split.score, split.baseline, strict=True))
        ]
    )
    print(f"\nlargest gap {gap:.2%}; written to {out}")
