"""Results in: rows of (n, value, seed, ...) from a file, a list, columns or a data frame."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backcast.errors import InputError

#: A table of runs: a path to CSV or JSON lines, rows as mappings or `Observation`, columns by name, or a DataFrame.
Table = Any

#: How many bad rows an error names before it counts the rest.
NAMED = 5


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


def read_results(path: str | Path) -> list[Observation]:
    """Read a CSV file or JSON lines, such as a sweep's ``results.jsonl``; a column ``selector`` becomes the group.

    Raises:
        InputError: as `observations`.
    """
    rows, where = _read(Path(path))
    group = "selector" if any("selector" in row for row in rows) else None
    return _observations(rows, where, str(path), "n", "value", "seed", "se", group)


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
    hold the numbers under ``metric``, as a sweep's results do. Rows that are `Observation` already are kept as they
    are, without their group when ``group`` is None.

    Raises:
        InputError: naming every bad row, by file and line or, in memory, by its 0-based row; or the missing column.
    """
    if isinstance(table, (str, Path)):
        rows, where = _read(Path(table))
        return _observations(rows, where, str(table), n, value, seed, se, group)
    given = list(_rows(table))
    where = [f"row {i}" for i in range(len(given))]
    if given and all(isinstance(row, Observation) for row in given):
        names = ("n", "value", "seed", "se", "group")
        rows = [{name: getattr(row, name) for name in (*names, "cost")} for row in given]
        return _observations(rows, where, "table", *names[:4], None if group is None else "group")
    return _observations(given, where, "table", n, value, seed, se, group)


def _rows(table: Table) -> Iterator[Any]:
    """Rows of a table in memory."""
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        table = {str(name): list(table[name]) for name in table.columns}
    if isinstance(table, Mapping):
        columns = {name: list(column) for name, column in table.items()}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"table: columns of different lengths {lengths}; give every row a value")
        return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    if isinstance(table, Sequence):
        return iter(table)
    raise InputError(
        f"table: cannot read a {type(table).__name__}; give a path, a list of rows, a dict of columns or a DataFrame"
    )


def _read(path: Path) -> tuple[list[Any], list[str]]:
    """A file's rows, and the place of each as ``file:line``."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a CSV file or JSON lines of results")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; give a CSV file or JSON lines of results") from None
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(text.splitlines())
        numbered = [(reader.line_num, row) for row in reader]
    else:
        numbered = [(i, _parse(path, i, line)) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [row for _, row in numbered], [f"{path}:{line}" for line, _ in numbered]


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{number}: not valid JSON ({error.msg}); give one object a line") from None


def _observations(
    rows: Sequence[Any],
    where: Sequence[str],
    source: str,
    n: str,
    value: str,
    seed: str,
    se: str,
    group: str | None,
) -> list[Observation]:
    if not rows:
        raise InputError(f"{source}: no rows; give the results of at least two budgets")
    names = {str(name) for row in rows if isinstance(row, Mapping) for name in row}
    if value not in names and "metric" in names:
        value = "metric"
    for name in (n, value) if group is None else (n, value, group):
        if name not in names:
            raise InputError(
                f"{source}: no column {name!r} among {sorted(names)}; name the table's own column"
            )

    found: list[Observation] = []
    first: dict[tuple[str, float, str], str] = {}
    bad: list[str] = []
    for place, row in zip(where, rows, strict=True):
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
        seed=_text(row.get(seed)),
        se=error,
        group=_text(row.get(group)) if group is not None else "",
        cost=_number(row, "cost"),
    )


def _number(row: Mapping[str, Any], name: str) -> float | None:
    """A cell as a finite number; None when it is absent or empty."""
    cell = row.get(name)
    if _text(cell) == "":
        return None
    try:
        number = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {cell!r}, which is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {cell!r}, which is not finite")
    return number


def _text(cell: Any) -> str:
    """A cell as text: whole numbers without a point, missing values empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or type(cell).__name__ == "NAType":
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()
