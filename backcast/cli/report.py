"""backcast report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Json, show


def run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, with its report.json.")],
    json: Json = False,
) -> None:
    """One self-contained HTML page of a run."""
    from backcast.report import read_report, write_report

    show({"report": str(write_report(read_report(folder), folder))}, json)
