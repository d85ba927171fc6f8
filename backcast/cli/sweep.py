"""backcast sweep"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backcast.cli.options import Columns, Json, SkipBroken, read, show, table
from backcast.errors import InputError

if TYPE_CHECKING:
    from backcast.data import Examples
    from backcast.finetune import Run

#: What is written beside the table of a sweep by modality.
PLOT = "laws.png"

#: What people see of the table.
COLUMNS = ("selector", "budget", "n", "seed", "modality", "metric", "measure", "seconds")


def run(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="What to fine-tune: a folder, a hub id, or an open_clip name."),
    ],
    train: Annotated[
        str, typer.Argument(metavar="TRAIN", help="The pool that the subsets were chosen from.")
    ],
    test: Annotated[str, typer.Argument(metavar="TEST", help="What every run is measured on.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="The sweep's; finished runs are kept in it.")
    ],
    subsets: Annotated[
        list[Path] | None, typer.Argument(metavar="SUBSET", help="Manifests of 'backcast select'.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="modality",
            help="Instead of SUBSET: random subsets of image-driven, text-driven and mixed rows, a law for each.",
        ),
    ] = None,
    parts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --by: the pool's parts, of 'backcast split'.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Instead of SUBSET: random subsets of so many rows, counts or percentages; with --by of each class.",
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="CLASS,...", help="With --by: some of image, text, mixed.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Runs of each subset.", min=1)] = 3,
    full: Annotated[bool, typer.Option(help="Also train on the whole pool.")] = True,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of each run.", min=1)] = 100,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Examples in a step.", min=1)] = 64,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", metavar="RATE", help="AdamW's, at its peak.")
    ] = 1e-3,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Runs at once; by default the cores, or what a GPU has room for.", min=1
        ),
    ] = None,
    on: Annotated[
        str, typer.Option(metavar="PLACE", help="Where: processes, of this machine, or ray.")
    ] = "processes",
    column: Columns = None,
    skip_broken: SkipBroken = False,
    json: Json = False,
) -> None:
    """Fine-tune on subsets, measure each run; resumes when stopped.

    Further subsets of the same selector and size count as further seeds: random ones, drawn anew.
    """
    _check(by, subsets, parts, sizes, classes)
    from backcast.finetune import FinetuneConfig, Run, random_runs
    from backcast.finetune import sweep as run_all

    if not learning_rate > 0:
        raise InputError(f"--learning-rate {learning_rate:g}: it must be above zero")
    pool, tested = (read(data, column, skip_broken) for data in (train, test))
    if parts and sizes:
        runs = _by_modality(pool, parts, sizes, classes, seeds)
    elif sizes:
        runs = random_runs(pool, _words(sizes), seeds, out / "subsets")
    else:
        runs = _on_subsets(pool, subsets or [], seeds)
    runs += [Run.on_all(pool, seed) for seed in range(seeds)] if full else []
    config = FinetuneConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    rows = run_all(model, pool, tested, runs, out, config=config, workers=workers, on=on)
    results = out / "results.jsonl"
    found = _compare(rows, out / PLOT) if by else {}
    if json:
        show({"results": str(results), "rows": rows, **found}, True)
    else:
        table([{name: row[name] for name in COLUMNS} for row in rows])
        print(f"\n{len(rows)} runs in {results}; next: backcast invert {results} --target ...")
        if found:
            _print(found)


def _check(
    by: str | None,
    subsets: Sequence[Path] | None,
    parts: Path | None,
    sizes: str | None,
    classes: str | None,
) -> None:
    """Refuse options that do not go together."""
    if by is None:
        for name, value in (("--parts", parts), ("--classes", classes)):
            if value is not None:
                raise InputError(f"{name} {value}: it goes with --by modality")
        if sizes and subsets:
            raise InputError(f"{subsets[0]}: --sizes draws its own subsets; leave SUBSET or --sizes out")
        if not sizes and not subsets:
            raise InputError(
                "Missing argument 'SUBSET': give manifests, --sizes or --by modality (see --help)"
            )
        return
    if by != "modality":
        raise InputError(f"--by {by}: the only one there is is --by modality")
    if subsets:
        raise InputError(f"{subsets[0]}: --by modality draws its own subsets; leave SUBSET or --by out")
    if parts is None:
        raise InputError("--by modality needs --parts FILE, the pool's parts as 'backcast split' writes them")
    if sizes is None:
        raise InputError("--by modality needs --sizes, e.g. 50,100,200,400 or 12.5%,25%,50%,100%")


def _on_subsets(pool: Examples, subsets: Sequence[Path], seeds: int) -> list[Run]:
    from backcast.finetune import Run
    from backcast.manifests import Manifest

    runs: list[Run] = []
    for manifest in [Manifest.load(path) for path in subsets]:
        first = Run.on_subset(manifest, pool, 0)
        made = sum((r.selector, len(r.rows)) == (first.selector, len(first.rows)) for r in runs)
        runs += [replace(first, seed=made + seed) for seed in range(seeds)]
    return runs


def _by_modality(pool: Examples, parts: Path, sizes: str, classes: str | None, seeds: int) -> list[Run]:
    from backcast.finetune import aligned, by_modality
    from backcast.multimodal.parts import Parts
    from backcast.selectors.modality import CLASSES

    found = aligned(Parts.load(parts), pool)
    return by_modality(found, pool, _words(sizes), seeds, _words(classes) if classes else CLASSES)


def _words(value: str) -> list[str]:
    return [word.strip() for word in value.split(",")]


def _compare(rows: Sequence[Mapping[str, Any]], plot: Path) -> dict[str, Any]:
    """The classes' laws, compared, and the plot of them."""
    from backcast.finetune import laws_by_modality
    from backcast.report.law_plots import write_laws_plot
    from backcast.scaling import compare_laws

    laws = laws_by_modality(rows)
    comparison = compare_laws(laws)
    write_laws_plot(plot, rows, laws, comparison)
    warnings = [f"{name}: {warning}" for name, law in laws.items() for warning in law.warnings]
    return {"comparison": comparison.to_json(), "warnings": warnings, "plot": str(plot)}


def _print(found: Mapping[str, Any]) -> None:
    """Exponents and slopes with their intervals, then the verdicts."""
    comparison = found["comparison"]
    print()
    unknown = {"median": None, "low": None, "high": None}  # of a flat curve
    estimates = {
        name: (comparison["exponents"].get(name, unknown), slope)
        for name, slope in comparison["slopes"].items()
    }
    table(
        [
            {
                "class": name,
                "exponent": exponent["median"],
                "from": exponent["low"],
                "to": exponent["high"],
                "slope": slope["median"],
                "slope_from": slope["low"],
                "slope_to": slope["high"],
            }
            for name, (exponent, slope) in estimates.items()
        ]
    )
    low, high = comparison["n"]
    print(f"\n{comparison['level']:.0%} intervals, between n = {low:g} and {high:g}:")
    for verdict in (*comparison["contrasts"], *comparison["leads"], *found["warnings"]):
        print(f"  {verdict['sentence'] if isinstance(verdict, Mapping) else verdict}")
    print(f"\nplot in {found['plot']}")
