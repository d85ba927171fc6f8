"""backcast export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Data, Json, Subset, show


def run(
    subset: Subset,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="*.jsonl, *.parquet; a folder for llamafactory, *.yaml for axolotl, *.py for trl.",
        ),
    ],
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="jsonl, parquet, llamafactory, axolotl or trl.")
    ] = "jsonl",
    data: Data = None,
    json: Json = False,
) -> None:
    """Write a subset's rows for another trainer to read."""
    from backcast.manifests import Manifest, export

    manifest = Manifest.load(subset)
    written = [str(path) for path in export(manifest, out, format, data)]
    files = {"files": written} if json else {"written": ", ".join(written)}
    show({**files, "examples": len(manifest), "format": format}, json)
