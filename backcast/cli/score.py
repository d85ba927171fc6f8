"""backcast score"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backcast.cli.options import (
    Checkpoints,
    Columns,
    Cosine,
    Json,
    Params,
    SkipBroken,
    checkpoints,
    read,
    score_params,
    show,
)
from backcast.errors import InputError

if TYPE_CHECKING:
    from backcast.attribution import SketchStore
    from backcast.data import Examples


def run(
    train: Annotated[
        str, typer.Argument(metavar="TRAIN", help="The training examples: their store, or themselves.")
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="The wanted examples, likewise; a store collected with --like TRAIN."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The scores.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            metavar="METHOD",
            help="On stores tracin, influence, ...; on examples with --model ekfac, bm25, ...",
        ),
    ] = "tracin",
    cosine: Cosine = True,
    param: Params = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The trained model, for methods that run it.")
    ] = None,
    checkpoint: Checkpoints = None,
    recording: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="The recorded training run, for replay and shapley."),
    ] = None,
    by_source: Annotated[
        bool, typer.Option("--by-source", help="One score for each source of the target, not each example.")
    ] = False,
    column: Columns = None,
    skip_broken: SkipBroken = False,
    json: Json = False,
) -> None:
    """Score training examples by their use for the wanted ones."""
    from backcast.attribution import Recording, SketchStore, attribute
    from backcast.multimodal import load_task

    pool, wanted = _read(train, column, skip_broken), _read(target, column, skip_broken)
    ran = Recording.open(recording) if recording else None
    network, task = None, None
    if model is not None:
        if isinstance(pool, SketchStore):
            raise InputError(f"{train}: a store; --model goes with the training examples themselves")
        network, task = load_task(model, pool, ran.origin["settings"] if ran else None)
    groups = None
    if by_source:
        groups = (wanted.rows if isinstance(wanted, SketchStore) else wanted.index).sources
    own = score_params(method, cosine, param)
    scores = attribute(
        pool,
        wanted,
        method,
        model=network,
        task=task,
        checkpoints=checkpoints(checkpoint),
        run=ran,
        groups=groups,
        out=out,
        **own,
    )
    n, m = scores.values.shape
    show({"scores": str(out), "examples": n, "targets": m, "method": method}, json)


def _read(place: str, column: str | None, skip_broken: bool) -> SketchStore | Examples:
    from backcast.attribution import SketchStore

    folder = Path(place)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return SketchStore.open(folder)
    return read(place, column, skip_broken)
