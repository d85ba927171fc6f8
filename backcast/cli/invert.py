"""backcast invert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Json, show


def run(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS", help="CSV or JSON lines with n, value (or metric), seed, selector."
        ),
    ],
    target: Annotated[float, typer.Option(metavar="X", help="The metric that is needed.")],
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
    json: Json = False,
) -> None:
    """The least data for a target, how sure, and what to run next.

    Exit code 1 when the target is out of reach on every curve.
    """
    from backcast.recipes.invert_results import invert_results

    answers = invert_results(results, target, not lower_is_better, low, high, level)
    if json:
        show({"target": target, "answers": answers}, True)
    else:
        for answer in answers:
            print(answer["sentence"])
            for warning in answer["warnings"]:
                print(f"  {warning}")
            print(f"  {answer['next_run']}")
    if all(answer["status"] == "unreachable" for answer in answers):
        raise typer.Exit(1)
