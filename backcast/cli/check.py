"""backcast check"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Json, show


def run(
    subset: Annotated[Path, typer.Argument(metavar="SUBSET", help="A manifest of 'backcast select'.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The data set, when it is no longer where the manifest says."),
    ] = None,
    json: Json = False,
) -> None:
    """Does the manifest still fit its data?

    Every chosen example must be in its row, unchanged. Exit code 1 when one has moved, changed or gone.
    """
    from backcast.manifests import check

    report = check(subset, data)
    if json:
        show(report.to_json(), True)
    else:
        print(report.summary)
    if not report.ok:
        raise typer.Exit(1)
