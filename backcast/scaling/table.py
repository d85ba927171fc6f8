"""Results in: runs of (n, value, seed, ...) from a file, a list, columns or a data frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backcast.errors import InputError
from backcast.scaling.rows import Placed, memory_rows, read_rows, text

#: A table of runs: a file, a sweep's folder, rows as mappings or `Observation`, columns by name, or a DataFrame.
Table = Any

#: What tells the curves of a file apart where nothing else is said: the first of these that it has.
GROUPS = ("selector", "modality", "run")

#: How many bad rows, and how many columns, an error names before it counts the rest.
NAMED, COLUMNS = 5, 20


@dataclass(frozen=True)
class Observation:
    """One measured run.

    Attributes:
        n: examples trained on (or any other measure of data), above 0.
        value: the metric.
        seed: the run's seed as text; empty when not known.
        se: the value's standard error, when it is a mean of several runs.
        group: what tells curves apart, e.g. the selector; empty when there is one curve.
        cost: the run's, in any unit.
    """

    n: float
    value: float
    seed: str = ""
    se: float | None = None
    group: str = ""
    cost: float | None = None


def read_results(
    path: str | Path, n: str = "n", value: str = "value", seed: str = "seed", se: str = "se"
) -> list[Observation]:
    """Read CSV, TSV, JSON lines (these gzipped or not), Parquet, or a sweep's folder; see `observations`.

    What tells its curves apart is the first of the columns ``selector``, ``modality`` and ``run`` that is not empty.

    Raises:
        InputError: as `observations`.
    """
    rows = read_rows(Path(path))
    given = [row for _, row in rows if isinstance(row, Mapping)]
    group = next((name for name in GROUPS if any(text(row.get(name)) for row in given)), None)
    return _observations(rows, str(path), n, value, seed, se, group)


def observations(
    table: Table,
    n: str = "n",
    value: str = "value",
    seed: str = "seed",
    se: str = "se",
    group: str | None = None,
) -> list[Observation]:
    """The table's runs; the arguments are its own column names.

    The columns ``seed``, ``se`` and ``cost`` may be absent or have empty cells. A table without a column ``value`` may
    hold the numbers under ``metric``, as a sweep's results do. A dotted name reaches into nested objects
    (``config.train_size``). Where a column ``state`` says how runs ended, only finished ones count, and a warning names
    the others. Rows that are `Observation` already are kept as they are, without their group when ``group`` is None.

    Exports of Weights & Biases are read as they come: the table of runs; a chart, whose runs are the column ``run``,
    with the chart's x as ``n``; and rows with the objects ``config`` and ``summary``.

    Raises:
        InputError: naming every bad row, by file and line or, in memory, by its 0-based row; or the missing column.
    """
    if isinstance(table, (str, Path)):
        return _observations(read_rows(Path(table)), str(table), n, value, seed, se, group)
    rows = memory_rows(table)
    if rows and all(isinstance(row, Observation) for _, row in rows):
        names = ("n", "value", "seed", "se", "group")
        rows = [(where, {name: getattr(row, name) for name in (*names, "cost")}) for where, row in rows]
        return _observations(rows, "table", *names[:4], None if group is None else "group")
    return _observations(rows, "table", n, value, seed, se, group)


def _observations(
    rows: Sequence[Placed],
    source: str,
    n: str,
    value: str,
    seed: str,
    se: str,
    group: str | None,
) -> list[Observation]:
    if not rows:
        raise InputError(f"{source}: no rows; give the results of at least two budgets")
    names = {name for _, row in rows if isinstance(row, Mapping) for name in row}
    if value not in names and "metric" in names:
        value = "metric"
    for name in (n, value) if group is None else (n, value, group):
        if name not in names:
            more = f" and {len(names) - COLUMNS} more" if len(names) > COLUMNS else ""
            raise InputError(
                f"{source}: no column {name!r} among {sorted(names)[:COLUMNS]}{more}; name the table's own column"
            )

    found: list[Observation] = []
    first: dict[tuple[str, float, str], str] = {}
    bad: list[str] = []
    for place, row in rows:
        try:
            run = _observation(row, n, value, seed, se, group)
        except ValueError as error:
            bad.append(f"{place}: {error}")
            continue
        key = (run.group, run.n, run.seed)
        if run.seed and key in first:
            bad.append(
                f"{place}: n {run.n:g} with seed {run.seed} is already at {first[key]}; remove one, or name the "
                "column that tells the curves apart as group"
            )
        first.setdefault(key, place)
        found.append(run)
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise InputError("; ".join(bad[:NAMED]) + more)
    return found


def _observation(row: Any, n: str, value: str, seed: str, se: str, group: str | None) -> Observation:
    if not isinstance(row, Mapping):
        raise ValueError(f"{row!r} is not a row of named values")
    size = _number(row, n)
    if size is None or size <= 0:
        raise ValueError(f"{n} is {row.get(n)!r}; it must be a number above 0")
    result = _number(row, value)
    if result is None:
        raise ValueError(f"{value} is empty; give the run's metric or remove the row")
    error = _number(row, se)
    if error is not None and error < 0:
        raise ValueError(f"{se} is {error:g}; it must not be negative")
    return Observation(
        n=size,
        value=result,
        seed=text(row.get(seed)),
        se=error,
        group=text(row.get(group)) if group is not None else "",
        cost=_number(row, "cost"),
    )


def _number(row: Mapping[str, Any], name: str) -> float | None:
    """A cell as a finite number; None when it is absent or empty."""
    cell = row.get(name)
    if text(cell) == "":
        return None
    try:
        number = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {cell!r}, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {cell!r}, which is not finite")
    return number
