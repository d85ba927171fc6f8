"""The rows of a table of results: from files, from memory, and in the shapes that Weights & Biases exports."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backcast.errors import InputError

log = logging.getLogger("backcast")

#: A row and its place, as messages name it; in bad tables a row may be anything.
Placed = tuple[str, Any]

#: Of a sweep's folder, the table.
RESULTS = "results.jsonl"

#: What a run's ``State`` can be in W&B's table of runs; a column of other words is the user's own.
STATES = {
    *("finished", "running", "pending", "starting", "queued"),
    *("failed", "crashed", "killed", "preempting", "preempted"),
}

#: How many unfinished runs a warning names before it counts the rest.
NAMED = 5


def read_rows(path: Path) -> list[Placed]:
    """The rows of a file or of a sweep's folder, flat; without runs that did not finish, which a warning names.

    Raises:
        InputError: a file that is missing or is no table, with the line.
    """
    return _tidy(str(path), _read(path))


def memory_rows(table: Any) -> list[Placed]:
    """As `read_rows`, of rows, columns by name or a DataFrame in memory, named by their 0-based numbers."""
    return _tidy("table", [(f"row {i}", row) for i, row in enumerate(_rows(table))])


def text(cell: Any) -> str:
    """A cell as text: whole numbers without a point, missing values empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or type(cell).__name__ == "NAType":
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _tidy(source: str, rows: list[Placed]) -> list[Placed]:
    """Curves out of a chart's columns, nested objects as dotted names, finished runs alone."""
    if rows and isinstance(rows[0][1], Mapping):
        rows = _chart(rows)
    flat = [(where, dict(_flat(row)) if isinstance(row, Mapping) else row) for where, row in rows]
    return _finished(source, flat)


# ------------------------------------------------------------------ files and memory


def _read(path: Path) -> list[Placed]:
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{path}: no such file, nor a sweep's folder; give CSV, JSON lines or Parquet")
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    if kind == [".parquet"]:
        return _parquet(file)
    try:
        raw = file.read_bytes()
        content = (gzip.decompress(raw) if packed else raw).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a text file; give CSV, JSON lines or Parquet") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{file}: not a whole gzip file; pack it again") from None
    if kind in ([".csv"], [".tsv"]):
        return _separated(file, content, "," if kind == [".csv"] else "\t")
    lines = enumerate(content.split("\n"), 1)
    return [(f"{file}:{i}", _parse(file, i, line)) for i, line in lines if line.strip()]


def _separated(file: Path, content: str, delimiter: str) -> list[Placed]:
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
    try:
        return [(f"{file}:{reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{file}:{reader.reader.line_num}: not valid CSV ({error})") from None


def _parse(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{number}: not valid JSON ({error.msg}); give one object a line") from None


def _parquet(file: Path) -> list[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file, partitioning=None).to_pylist()
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a Parquet file ({' '.join(str(error).split())})") from None
    return [(f"{file}: row {i}", row) for i, row in enumerate(rows)]


def _rows(table: Any) -> Iterator[Any]:
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


# ------------------------------------------------------------------ what W&B exports


def _chart(rows: list[Placed]) -> list[Placed]:
    """A chart's export as a row for each run and step; a table that is no chart's as it is.

    The chart's columns are ``Step, "RUN - METRIC", "RUN - METRIC__MIN", "RUN - METRIC__MAX", ...``; the rows' are
    ``n`` and the first column's own name, ``run``, each metric's name and, where there is one metric, ``value``.
    Step 0, before any training, has no place on a learning curve.
    """
    names = [str(name) for name in rows[0][1]]
    curves = [name.removesuffix("__MIN") for name in names if name.endswith("__MIN")]
    if not curves:
        return rows
    split = [(curve, *curve.rpartition(" - ")[::2]) for curve in curves]
    split = [each for each in split if each[2] != "_step"]
    lone = len({metric for _, _, metric in split}) == 1
    runs = {run: {metric: curve for curve, r, metric in split if r == run} for _, run, _ in split}
    found: list[Placed] = []
    for where, row in rows:
        step = row[names[0]]
        for run, columns in runs.items() if text(step) not in ("0", "0.0") else ():
            cells = {metric: row[c] for metric, c in columns.items() if text(row.get(c))}
            if cells:
                value = {"value": next(iter(cells.values()))} if lone else {}
                found.append((where, {"n": step, names[0]: step, "run": run, **value, **cells}))
    return found


def _flat(row: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested objects by dotted names; in CSV they are texts, JSON or as Python prints them."""
    for name, cell in row.items():
        nested = _object(cell) if isinstance(cell, str) and cell.startswith("{") else cell
        if isinstance(nested, Mapping):
            yield from _flat(nested, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", cell


def _object(cell: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(cell)
        except (ValueError, SyntaxError, RecursionError):
            continue
    return None


def _finished(source: str, rows: list[Placed]) -> list[Placed]:
    """The rows without those of runs whose state is another than finished."""
    for column in ("state", "State"):
        states = [text(row.get(column)).lower() if isinstance(row, Mapping) else "" for _, row in rows]
        if set(states) - {""} <= STATES:
            left = [
                f"{text(row.get('Name') or row.get('name')) or where} ({state})"
                for (where, row), state in zip(rows, states, strict=True)
                if state not in ("", "finished")
            ]
            if left:
                more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
                named = ", ".join(left[:NAMED]) + more
                log.warning("%s: runs that did not finish are left out: %s", source, named)
            rows = [each for each, state in zip(rows, states, strict=True) if state in ("", "finished")]
    return rows
