"""Options and output that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backcast.errors import InputError

if TYPE_CHECKING:
    from backcast.attribution import Checkpoint
    from backcast.data import Examples

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of every random choice.", min=0)]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="FIELD=COLUMN,...",
        help="The data's own names of its fields, e.g. prompt=question,response=answer.",
    ),
]
Cosine = Annotated[bool, typer.Option(help="tracin: normalise every gradient.")]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="NAME=VALUE", help="The method's own, e.g. damping=0.1; once for each."),
]
Subset = Annotated[Path, typer.Argument(metavar="SUBSET", help="A manifest of 'backcast select'.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="The data set, when it is no longer where the manifest says."),
]
SkipBroken = Annotated[
    bool,
    typer.Option("--skip-broken", help="Leave out rows whose image is missing or broken, and name them."),
]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        metavar="PATH[=RATE]",
        help="Weights to visit, with the learning rate of the steps around them; give it once for each.",
    ),
]


def read(place: str, column: str | None, skip_broken: bool) -> Examples:
    """The data set of a command's argument."""
    from backcast.data import read_examples

    return read_examples(place, columns(column), skip_broken)


def skipped(*examples: Examples) -> dict[str, list[tuple[int, str]]]:
    """What a command tells of left-out rows: for each data set (row, reason); nothing where none was left out."""
    return {each.dataset: list(each.skipped) for each in examples if each.skipped}


def columns(value: str | None) -> dict[str, str] | None:
    """``prompt=question,response=answer`` as a mapping."""
    if value is None:
        return None
    pairs = [pair.partition("=") for pair in value.split(",")]
    if not all(field.strip() and own.strip() for field, _, own in pairs):
        raise InputError(
            f"--columns {value!r}: write field=COLUMN pairs, e.g. prompt=question,response=answer"
        )
    return {field.strip(): own.strip() for field, _, own in pairs}


def checkpoints(values: Sequence[str] | None) -> list[Checkpoint] | None:
    """``PATH=RATE`` options as checkpoints."""
    return [_checkpoint(value) for value in values] if values else None


def _checkpoint(value: str) -> Checkpoint:
    from backcast.attribution import Checkpoint

    path, _, rate = value.partition("=")
    try:
        learning_rate = float(rate or 1.0)
    except ValueError:
        learning_rate = math.nan
    if not 0 < learning_rate < math.inf:
        raise InputError(f"--checkpoint {value!r}: {rate!r} is no learning rate; write PATH=0.001")
    return Checkpoint(path, learning_rate)


def score_params(method: str, cosine: bool, values: Sequence[str] | None) -> dict[str, Any]:
    """What a command's options say of the scores' method."""
    return ({"cosine": cosine} if method == "tracin" else {}) | params(values)


def named(option: str, values: Sequence[str] | None, example: str) -> dict[str, str] | None:
    """``NAME=TEXT`` options by name, none of them twice; None where there are none."""
    pairs = [value.partition("=") for value in values or ()]
    if odd := ["".join(pair) for pair in pairs if not (pair[0] and pair[2])]:
        raise InputError(f"{option} {odd[0]}: write NAME=VALUE, e.g. {example}")
    names = [name for name, _, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{option} {twice}: is given twice; give it once")
    return {name: text for name, _, text in pairs} or None


def numbers(option: str, values: Sequence[str] | None, example: str) -> dict[str, float] | None:
    """``NAME=NUMBER`` options by name."""
    texts = named(option, values, example) or {}
    try:
        return {name: float(text) for name, text in texts.items()} or None
    except ValueError:
        raise InputError(f"{option}: {', '.join(texts.values())} must be numbers; write {example}") from None


def params(values: Sequence[str] | None) -> dict[str, Any]:
    """``damping=0.1`` options by name; a value that is neither JSON nor Python's True, False, None is a string."""
    pairs = [value.partition("=") for value in values or ()]
    if odd := ["".join(pair) for pair in pairs if not (pair[0] and pair[1])]:
        raise InputError(f"--param {odd[0]!r}: write NAME=VALUE, e.g. damping=0.1")
    return {name: _value(text) for name, _, text in pairs}


#: What would be a string in JSON, and as such true.
_PYTHON = {"True": "true", "False": "false", "None": "null"}


def _value(text: str) -> Any:
    try:
        return json.loads(_PYTHON.get(text, text))
    except ValueError:
        return text


def show(value: Mapping[str, Any], as_json: bool) -> None:
    """Print a command's result: one JSON object, or a line for each entry."""
    if as_json:
        print(json.dumps(value, allow_nan=False))
        return
    width = max(map(len, value))
    for key, entry in value.items():
        print(f"{key.replace('_', ' '):{width}}  {entry}")


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table on stdout; the first row's keys are the columns."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for name in rows[0]:
        numeric = all(isinstance(row[name], (int, float)) or row[name] is None for row in rows)
        shown.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    Console().print(shown)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
