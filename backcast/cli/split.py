"""backcast split"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Checkpoints, Cosine, Json, Params, checkpoints, score_params, show, table


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model that the stores were collected with.")
    ],
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="The training examples' store.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The wanted examples' store.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="parts.parquet, shortlist.jsonl and report.html."),
    ] = Path("split"),
    subset: Annotated[
        Path | None,
        typer.Option(
            "--subset", metavar="SUBSET", help="A manifest: its rows alone, and their parts written into it."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", "-m", metavar="METHOD", help="Of the scores: tracin, grad_dot, grad_cos or influence."
        ),
    ] = "tracin",
    cosine: Cosine = True,
    param: Params = None,
    by_source: Annotated[
        bool, typer.Option("--by-source", help="Scores of each source of the target, not of each example.")
    ] = False,
    best: Annotated[
        bool,
        typer.Option("--best", help="Each example's score for the target that it serves best, not its mean."),
    ] = False,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE+TEXT",
            help="What stands for absence: colour, blur or mean, and mean or mask; once for each, the first counts.",
        ),
    ] = None,
    shown: Annotated[
        int,
        typer.Option("--rows", metavar="N", help="How many of the best and of the worst get maps.", min=1),
    ] = 6,
    checkpoint: Checkpoints = None,
    json: Json = False,
) -> None:
    """Split every score between image and text; resumes when stopped.

    The examples are read again from the data that the stores name.
    """
    from backcast.multimodal.split import BASELINES
    from backcast.recipes.split.scores import split_scores

    parts = split_scores(
        model,
        train,
        target,
        out,
        score=method,
        params=score_params(method, cosine, param),
        by_source=by_source,
        best=best,
        checkpoints=checkpoints(checkpoint),
        manifest=subset,
        baselines=baseline or BASELINES,
        shown=shown,
    )
    agreement = parts.agreement()
    if json:
        show({"split": str(out), "examples": len(parts.rows), "agreement": agreement}, True)
        return
    if agreement:
        table([{**row, "baselines": " and ".join(row["baselines"])} for row in agreement])
    print(f"\n{len(parts.rows)} scores, each baseline + image + text, in {out / 'parts.parquet'}")
    print(f"the best and the worst with their maps in {out / 'report.html'}")
