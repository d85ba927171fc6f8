"""backcast collect"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Checkpoints, Columns, Json, Seed, checkpoints, columns, show


def run(
    model: Annotated[
        str, typer.Argument(help="A folder, a hub id, or an open_clip name such as ViT-B-32/openai.")
    ],
    data: Annotated[str, typer.Argument(help="JSONL, Parquet, or a Hugging Face data set's folder or id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The store's folder.")],
    like: Annotated[
        Path | None, typer.Option(help="A store to compare with: its sketch is taken over.")
    ] = None,
    bank: Annotated[
        str | None,
        typer.Option(
            help="Image-text: the data that negatives come from; for a target, give the training data."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="kron, sjlt or dense; by default what suits the device.")
    ] = None,
    dim: Annotated[int, typer.Option(help="Numbers in a sketch.", min=1)] = 4096,
    checkpoint: Checkpoints = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a forward.", min=1)] = 32,
    column: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Sketch every example's gradient; resumes where it was stopped."""
    from backcast.attribution import SketchStore
    from backcast.attribution import collect as sketch
    from backcast.data import read_examples
    from backcast.kernels import SketchSpec, default_kind
    from backcast.multimodal import load_task

    other = SketchStore.open(like) if like else None
    examples = read_examples(data, columns(column))
    network, task = load_task(model, read_examples(bank, columns(column)) if bank else examples)
    spec = SketchSpec(kind or default_kind(next(network.parameters()).device), dim, seed)
    store = sketch(
        network,
        task,
        examples,
        out,
        checkpoints=checkpoints(checkpoint),
        spec=spec,
        like=other,
        batch_size=batch_size,
    )
    show({"store": str(out), "examples": len(store), **store.spec.to_json()}, json)
