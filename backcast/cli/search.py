"""backcast search"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Json, show, table
from backcast.errors import InputError


def run(
    store: Annotated[Path, typer.Argument(help="The store to search.")],
    query: Annotated[
        str, typer.Argument(help="A store collected with --like STORE, or a row number of STORE.")
    ],
    k: Annotated[int, typer.Option("--neighbours", "-k", help="How many for each query.", min=1)] = 10,
    json: Json = False,
) -> None:
    """The nearest training examples by gradient."""
    from backcast.attribution import GradientIndex, SketchStore

    indexed = SketchStore.open(store)
    names: tuple[str, ...]
    if query.isdigit():
        if int(query) >= len(indexed):
            raise InputError(f"{store}: has no row {query}; its rows are 0 to {len(indexed) - 1}")
        cosines, places = GradientIndex(indexed).search(indexed.features()[[int(query)]], k)
        names = (indexed.rows.ids[int(query)],)
    else:
        other = SketchStore.open(query)
        cosines, places = GradientIndex(indexed).search(other, k)
        names = other.rows.ids
    found = [
        {
            "query": names[q],
            "id": indexed.rows.ids[i],
            "row": int(indexed.rows.rows[i]),
            "source": indexed.rows.sources[i],
            "cosine": float(c),
        }
        for q in range(len(names))
        for c, i in zip(cosines[q], places[q], strict=True)
        if i >= 0
    ]
    if json:
        show({"neighbours": found}, True)
    else:
        table([{**row, "query": row["query"][:12], "id": row["id"][:12]} for row in found])
