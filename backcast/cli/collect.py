"""backcast collect"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import (
    Checkpoints,
    Columns,
    Json,
    Seed,
    SkipBroken,
    checkpoints,
    read,
    show,
    skipped,
)


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder, a hub id, or an open_clip name such as ViT-B-32/openai."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="JSONL, Parquet, or a Hugging Face data set's folder or id."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="STORE", help="The store's folder.")],
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", help="A store to compare with: its sketch and its bank of negatives are taken."
        ),
    ] = None,
    bank: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Image-text: where negatives come from; by default --like's data, or DATA."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="kron, tile, sjlt or dense; by default what suits the device."),
    ] = None,
    dim: Annotated[int, typer.Option(metavar="N", help="Numbers in a sketch.", min=1)] = 4096,
    checkpoint: Checkpoints = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Examples in a forward.", min=1)] = 32,
    autocast: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="bfloat16 or float16, for the model's matrix products."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(metavar="DTYPE", help="How rows are stored: float32, float16, int8 or sign (1 bit)."),
    ] = "float32",
    of: Annotated[
        str, typer.Option(metavar="WHAT", help="Gradients of the loss, or of the task's output (for trak).")
    ] = "loss",
    index: Annotated[
        bool, typer.Option("--index", help="Also keep an index in STORE, for 'backcast search'.")
    ] = False,
    column: Columns = None,
    skip_broken: SkipBroken = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Sketch every example's gradient; resumes when stopped.

    A target is collected with --like its training store, so that the two can be compared.
    """
    from backcast.attribution import SketchStore
    from backcast.attribution import collect as sketch
    from backcast.data import read_examples
    from backcast.kernels import SketchSpec, default_kind
    from backcast.multimodal import check_same_kind, load_task

    other = SketchStore.open(like) if like else None
    examples = pool = read(data, column, skip_broken)
    if bank:
        pool = read(bank, column, skip_broken)
    elif other and "caption" in examples[0].fields:
        pool = read_examples(other.rows.dataset, other.rows.columns, skip_broken=True)
    check_same_kind(pool, examples)
    network, task = load_task(model, pool)
    store = sketch(
        network,
        task,
        examples,
        out,
        checkpoints=checkpoints(checkpoint),
        spec=SketchSpec(kind or default_kind(next(network.parameters()).device), dim, seed),
        like=other,
        batch_size=batch_size,
        autocast=autocast,
        dtype=dtype,
        of=of,
        index=index,
    )
    spec = store.spec
    left_out = skipped(examples)
    show(
        {
            "store": str(out),
            "examples": len(store),
            "checkpoints": len(store.checkpoints),
            "kind": spec.kind,
            "dim": spec.dim,
            "seed": spec.seed,
            **({"skipped": left_out if json else sum(map(len, left_out.values()))} if left_out else {}),
        },
        json,
    )
