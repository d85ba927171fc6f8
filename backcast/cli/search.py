"""backcast search"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backcast.cli.options import Json, show, table
from backcast.errors import InputError

if TYPE_CHECKING:
    from backcast.attribution import SketchStore


def run(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The store to search.")],
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY", help="A store collected with --like STORE, or the number of a row of STORE."
        ),
    ],
    k: Annotated[
        int, typer.Option("--neighbours", "-k", metavar="N", help="How many for each query.", min=1)
    ] = 10,
    json: Json = False,
) -> None:
    """The nearest training examples by gradient."""
    from backcast.attribution import GradientIndex, SketchStore

    indexed = SketchStore.open(store)
    if query.isdigit() and not Path(query).exists():
        own = _position(indexed, int(query))
        asked, rows = [own], indexed.rows
        found = GradientIndex(indexed).search(indexed.features()[asked], k + 1)  # one is the row itself
    else:
        other, own = SketchStore.open(query), -1
        asked, rows = list(range(len(other))), other.rows
        found = GradientIndex(indexed).search(other, k)
    near = [
        {
            "query": rows.ids[q],
            "query_row": int(rows.rows[q]),
            "id": indexed.rows.ids[i],
            "row": int(indexed.rows.rows[i]),
            "source": indexed.rows.sources[i],
            "cosine": float(c),
        }
        for q, cosines, places in zip(asked, *found, strict=True)
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
