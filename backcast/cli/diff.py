"""backcast diff"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from backcast.cli.options import Json, show, table

#: How much of a value fits into a cell.
CELL = 40


def run(
    a: Annotated[Path, typer.Argument(metavar="A", help="A manifest of 'backcast select'.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    json: Json = False,
) -> None:
    """How far do two subsets agree, and where do they differ?

    Overlap, sources and scores side by side, what differs in how they were made, and the first examples of each that
    the other lacks. The data are not read.
    """
    from backcast.manifests import diff

    found = diff(a, b)
    if json:
        show(found.to_json(), True)
        return
    print(found.summary)
    _section(f"sources: {found.shift:.1%} of b come from others than in a", found.sources)
    told = "" if found.agreement is None else f": rank correlation of the common {found.agreement:.3f}"
    _section(f"scores{told}", found.scores)
    _section("made with", [{"what": what, "a": _cell(x), "b": _cell(y)} for what, x, y in found.made])
    for name, rows in (("a", found.only_a), ("b", found.only_b)):
        _section(f"only in {name}, the first", [{**row, "id": row["id"][:12]} for row in rows])


def _section(title: str, rows: Any) -> None:
    if rows:
        print(f"\n{title}")
        table(rows)


def _cell(value: Any) -> str:
    """A value on one line; a hash and its like are cut."""
    text = "–" if value is None else value if isinstance(value, str) else json_module.dumps(value)
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"
