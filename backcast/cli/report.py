"""backcast report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Json, show
from backcast.errors import InputError


def run(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|SUBSET.jsonl", help="A run's folder, with its report.json, or a manifest."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Of a manifest: the page; default SUBSET.html."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Of a manifest: the pool's scores, for histograms and what was left out."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", help="Of a manifest: the pool's sketches, for redundancy and coverage."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Of a manifest: where its data are, if not where it says."),
    ] = None,
    json: Json = False,
) -> None:
    """One self-contained HTML page: of a run, or of one selection.

    What a selection's page needs and no option names is taken from where the manifest says that it is.
    """
    if what.suffix == ".jsonl":
        from backcast.recipes.selection.report import selection_report

        page, choice = selection_report(what, out, scores=scores, store=store, data=data)
        show({"report": str(page), **(choice.to_json() if json else {})}, json)
        return
    if out or scores or store or data:
        raise InputError(
            f"{what}: --out, --scores, --store and --data are for the page of a manifest, SUBSET.jsonl"
        )

    from backcast.report import read_report, write_report

    show({"report": str(write_report(read_report(what), what))}, json)
