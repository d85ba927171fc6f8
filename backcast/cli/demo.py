"""backcast demo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backcast.cli.options import Json, Seed, show, table


def run(
    data: Annotated[
        str, typer.Option(metavar="NAME", help="digits (images with captions) or docstrings (text).")
    ] = "digits",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="The run's, resumed when it is there; by default runs/NAME."
        ),
    ] = None,
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer budgets and seeds, the same path.")] = False,
    json: Json = False,
) -> None:
    """The whole loop on data that installs with it; ends in a page."""
    from backcast.recipes.demo.run import demo

    folder = out or Path("runs") / f"{data}{'-quick' if quick else ''}{f'-{seed}' if seed else ''}"
    summary, report, page = demo(folder, data, seed, quick)
    if json:
        show({**summary, "report": str(page)}, True)
        return
    for sentence in report.answer:
        print(sentence)
    print()
    table(
        [
            {"figure": f.name, "value": f.value, "wanted": f.wanted, "met": _word(f.met)}
            for f in report.figures
        ]
    )
    print(f"\n{report.next_run}\n\n{summary['seconds']['total']:.0f} s; the report: {page}")


def _word(met: bool | None) -> str | None:
    return None if met is None else "yes" if met else "no"
