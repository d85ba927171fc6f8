"""backcast select"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from backcast.cli.options import (
    Columns,
    Json,
    SkipBroken,
    columns,
    named,
    numbers,
    params,
    show,
    table,
)

if TYPE_CHECKING:
    from backcast.manifests import Manifest
    from backcast.recipes.selection.run_config import RunConfig


class Command(TyperCommand):
    """Tells of the methods too, but only where it is asked for help: to know them takes an import."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from backcast.selectors.filters import FILTERS
        from backcast.selectors.methods import DIVIDERS, SELECTORS

        kinds: Mapping[str, Mapping[str, type]] = {
            "Filters, which go first": FILTERS,
            "Dividers, which go between": DIVIDERS,
            "Selectors, of which one goes last": SELECTORS,
        }
        for kind, registry in kinds.items():
            with formatter.section(kind):
                formatter.write_dl([(name, _sentence(stage)) for name, stage in registry.items()])
        super().format_epilog(ctx, formatter)


def _sentence(stage: type) -> str:
    """The beginning of what is said of it."""
    return re.split(r"[.:;](?:\s|$)", inspect.getdoc(stage) or "")[0].replace("\n", " ")


def run(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A run.yaml, or a SUBSET.meta.json, whose run it makes again; options given here go before its keys.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The manifest to write, *.jsonl.", show_default="subset.jsonl"
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="AMOUNT",
            help="500 examples, 5% of the pool, '200000 tokens', '5% tokens', or of a column of costs, '12 dollars'.",
            show_default="5%",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="METHOD",
            help="A selector, after any filters and dividers: 'dedup(threshold=0.95) | quota(source) | top_k'; "
            "they are listed below.",
            show_default="round_robin",
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="The selector's own parameter; once for each."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="One shot: a folder, a hub id, or an open_clip name."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(metavar="DATA", help="One shot: the pool to choose from.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DATA",
            help="One shot: examples of what is wanted; several, once for each, have names and are groups.",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="One shot: what the methods that learn measure their trials on."),
    ] = None,
    scores: Annotated[
        str | None, typer.Option(metavar="FILE", help="Step by step: the file of 'backcast score'.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Step by step: the pool's store, for the methods that compare examples with each other.",
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The file of 'backcast split' over the whole pool, for the methods that look at modalities; "
            "the manifest tells the chosen rows' parts.",
        ),
    ] = None,
    signal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="Further scores of the pool, such as its perplexity; once for each."
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="source", help="The sources of the target are its groups, of any sizes."),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="How much a group of targets counts; 1 where not said."),
    ] = None,
    at_least: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE=AMOUNT", help="The least to take of a source: 100, or 10% of the budget."
        ),
    ] = None,
    at_most: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE=AMOUNT", help="The most to take of a source: 100, or 30% of the budget."
        ),
    ] = None,
    column: Columns = None,
    skip_broken: SkipBroken = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of every random choice.", min=0, show_default="0")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing; time a few batches, and say what the run would take."),
    ] = False,
    json: Json = False,
) -> None:
    """Choose a subset within a budget and write its manifest.

    Either in one shot from --model, --train and --target, or step by step: from --scores (and --store).
    """
    from backcast.recipes.selection.run_config import RunConfig

    base = RunConfig.read(config) if config else RunConfig()
    given = {
        "out": out,
        "budget": budget,
        "method": method,
        "params": params(param) or None,
        "model": model,
        "pool": train,
        "target": _target(target),
        "scores": scores,
        "store": store,
        "parts": parts,
        "signals": named("--signal", signal, "perplexity=FILE"),
        "group_by": group_by,
        "weights": numbers("--weight", weight, "math=2"),
        "at_least": named("--at-least", at_least, "web=10%"),
        "at_most": named("--at-most", at_most, "web=30%"),
        "columns": columns(column),
        "skip_broken": skip_broken or None,
        "seed": seed,
        "trial": {**(base.trial.model_dump() if base.trial else {}), "test": test} if test else None,
    }
    asked = base.changed(given)
    asked.check()
    if dry_run:
        _estimate(asked, json)
    else:
        _told(_chosen(asked), asked, json)


def _target(values: list[str] | None) -> str | dict[str, str] | None:
    """One data set, or a name for each of several."""
    if not values:
        return None
    if len(values) == 1 and (Path(values[0]).exists() or "=" not in values[0]):
        return values[0]
    return named("--target", values, "math=math.jsonl")


def _chosen(config: RunConfig) -> Manifest:
    if config.scores:
        from backcast.recipes.selection.from_scores import select_from_scores

        return select_from_scores(config)
    from backcast.recipes.selection.one_shot import select_subset

    return select_subset(config)


def _told(manifest: Manifest, config: RunConfig, json: bool) -> None:
    budget = manifest.meta["budget"]
    found: dict[str, Any] = {
        "subset": config.out,
        "examples": len(manifest),
        "method": manifest.meta["selector"]["method"],
        "budget": config.budget,
    }
    if "spent" in budget:
        found["spent"] = budget["spent"] if json else f"{budget['spent']:.12g} {budget['unit']}"
    if dropped := manifest.meta["dropped"]["reasons"]:
        found["dropped"] = dropped if json else ", ".join(map(_reasons, dropped, dropped.values()))
    show(found, json)


def _reasons(name: str, reasons: Mapping[str, int]) -> str:
    return f"{name} ({', '.join(f'{reason}: {count}' for reason, count in reasons.items())})"


def _estimate(config: RunConfig, json: bool) -> None:
    from backcast.recipes.selection.estimate import Step, estimate

    found = estimate(config)
    if json:
        show(found.to_json(), True)
        return
    whole = [
        Step("total", None, *map(found.total, ("seconds", "memory", "disk"))),
        Step("free", **found.free),
    ]
    table(
        [
            {
                "step": step.step,
                "rows": step.rows,
                "time": _time(step.seconds),
                "memory": _size(step.memory),
                "disk": _size(step.disk),
            }
            for step in (*found.steps, *whole)
        ]
    )
    if found.unknown:
        print(f"Not counted: the time and the memory of {', '.join(found.unknown)}, which are not known.")
    for what, free in found.free.items():
        if found.total(what) > free:
            print(f"There is not enough {what}.")


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _size(count: int | None) -> str | None:
    return None if count is None else f"{count / 1e6:,.1f} MB"
