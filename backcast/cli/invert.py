"""backcast invert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Json, show
from backcast.errors import InputError


def run(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS", help="CSV or JSON lines with n, value (or metric), seed, selector."
        ),
    ],
    target: Annotated[
        list[float],
        typer.Option(metavar="X", help="The metric that is needed; once for each of several."),
    ],
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better/--higher-is-better", help="The metric's direction.")
    ] = False,
    low: Annotated[
        float | None, typer.Option(metavar="X", help="The least value that the metric can have.")
    ] = None,
    high: Annotated[
        float | None, typer.Option(metavar="X", help="The largest value that the metric can have.")
    ] = None,
    level: Annotated[float, typer.Option(metavar="P", help="The interval's probability.")] = 0.9,
    n: Annotated[str, typer.Option("--n", metavar="COLUMN", help="The table's column of data sizes.")] = "n",
    value: Annotated[str, typer.Option(metavar="COLUMN", help="Its column of the metric.")] = "value",
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Its column that tells curves apart.",
            show_default="selector, if it is there",
        ),
    ] = None,
    cost: Annotated[
        float,
        typer.Option(
            metavar="N",
            help="What a run costs whatever its size, in examples: it decides which run tells most for its cost.",
        ),
    ] = 0.0,
    report: Annotated[
        Path | None, typer.Option(metavar="PAGE.html", help="Write a page with curves and plots.")
    ] = None,
    json: Json = False,
) -> None:
    """The least data for a target, how sure, and what to run next.

    Exit code 1 when the target is out of reach on every curve.
    """
    from backcast.recipes.invert_results import invert_results

    if report is not None and report.suffix != ".html":
        raise InputError(f"{report}: the name of a page ends in .html")
    found = invert_results(results, target, not lower_is_better, (low, high), level, n, value, group, cost)
    if report is not None:
        from backcast.recipes.inversion_page import write_page

        write_page(found, report, results.name)
    if json:
        show(found.to_json(), True)
    else:
        for answer in found.answers:
            print(answer.inversion.sentence())
            for warning in answer.warnings():
                print(f"  {warning}")
            print(f"  {answer.advice.sentence()}")
        if len(found.laws) > 1:
            for same in found.preimages:
                print(same.sentence())
            for saved in found.savings:
                print(saved.sentence())
    if found.unreachable:
        raise typer.Exit(1)
