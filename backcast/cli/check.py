"""backcast check"""

from __future__ import annotations

import typer

from backcast.cli.options import Data, Json, Subset, show


def run(
    subset: Subset,
    data: Data = None,
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
