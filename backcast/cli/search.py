"""backcast search"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from backcast.cli.options import Checkpoints, Json, checkpoints, show, table
from backcast.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from backcast.attribution import Checkpoint, GradientIndex, SketchStore
    from backcast.data import Examples


def run(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The store to search.")],
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUERY]",
            help="A store collected with --like STORE, or the number of a row of STORE; or give an example instead.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="An example: its text, caption or, with --prompt, its response."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="The example's prompt.")] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="The example's image.")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What STORE was collected from, to sketch the example."),
    ] = None,
    checkpoint: Checkpoints = None,
    k: Annotated[
        int, typer.Option("--neighbours", "-k", metavar="N", help="How many for each query.", min=1)
    ] = 10,
    json: Json = False,
) -> None:
    """The nearest training examples by gradient."""
    from backcast.attribution import GradientIndex, SketchStore

    if (query is None) != any(part is not None for part in (text, prompt, image)):
        raise InputError("search: give either QUERY or an example by --text, --prompt, --image")
    indexed, own = SketchStore.open(store), -1
    index = GradientIndex(indexed)
    if query is None:
        asked, found = _near(index, _example(text, prompt, image), model, checkpoints(checkpoint), k)
    elif query.isdigit() and not Path(query).exists():
        own = _position(indexed, int(query))
        asked = [(indexed.rows.ids[own], int(query))]
        found = index.search(indexed.read(slice(own, own + 1)), k + 1)  # one is the row itself
    else:
        other = SketchStore.open(query)
        asked = list(zip(other.rows.ids, other.rows.rows.tolist(), strict=True))
        found = index.search(other, k)
    near = [
        {
            "query": name,
            "query_row": row,
            "id": indexed.rows.ids[i],
            "row": int(indexed.rows.rows[i]),
            "source": indexed.rows.sources[i],
            "cosine": float(c),
        }
        for (name, row), cosines, places in zip(asked, *found, strict=True)
        for c, i in zip(cosines, places, strict=True)
        if i not in (-1, own)
    ][: k * len(asked)]
    if json:
        show({"neighbours": near}, True)
    else:
        table([{k: row[k] for k in ("query_row", "row", "source", "cosine")} for row in near])


def _position(store: SketchStore, row: int) -> int:
    """Where a row of the data set stands in the store."""
    rows = store.rows.rows.tolist()
    if row not in rows:
        raise InputError(f"{store.path}: has no row {row}; its rows are {min(rows)} to {max(rows)}")
    return rows.index(row)


def _example(text: str | None, prompt: str | None, image: Path | None) -> Examples:
    """The one that the options describe, as data in a file would."""
    from backcast.data import Examples

    if text is None:
        raise InputError("search: --text is missing: the example's text, caption or response")
    if image and not image.is_file():
        raise InputError(f"{image}: no such image; give --image the path of a file")
    picture = {"image": str(image.resolve())} if image else {}
    if prompt is not None:
        return Examples.from_fields([{"prompt": prompt, "response": text, **picture}])
    return Examples.from_fields([{"caption": text, **picture} if image else {"text": text}])


def _near(
    index: GradientIndex,
    example: Examples,
    model: str | None,
    weights: Sequence[Checkpoint] | None,
    k: int,
) -> tuple[list[tuple[str, int]], tuple[np.ndarray, np.ndarray]]:
    """The example's id and row, and its neighbours, by a sketch as the store's; kept in no file."""
    from backcast.attribution import collect
    from backcast.data import read_examples
    from backcast.multimodal import load_task

    if model is None:
        raise InputError("search: --model is missing: what STORE was collected from, to sketch the example")
    store, origin = index.store, index.store.header.origin
    pool = example
    if "caption" in example[0].fields:  # the task's negatives are the pool's
        pool = read_examples(store.rows.dataset, store.rows.columns, skip_broken=True)
    network, task = load_task(model, pool, origin.get("settings"))
    with TemporaryDirectory() as folder:
        sketched = collect(
            network,
            task,
            example,
            Path(folder) / "example",
            of=origin["of"],
            checkpoints=weights,
            like=store,
            autocast=origin.get("autocast"),
        )
        return [(example[0].id, 0)], index.search(sketched, k)
