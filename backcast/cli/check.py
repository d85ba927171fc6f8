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

    Exit code 1 when it does not.
    """
    from backcast.manifests import check

    report = check(subset, data)
    if json:
        kinds = {kind: len(getattr(report, kind)) for kind in ("moved", "changed", "missing", "duplicated")}
        show({"ok": report.ok, **kinds, "summary": report.summary}, True)
    else:
        print(report.summary)
    if not report.ok:
        raise typer.Exit(1)
