"""The file of a selection: which rows, why, and whether its data still fit.

``subset.jsonl`` holds a line a row, in rank order::

    {"row": 17, "id": "9f…", "source": "web", "rank": 1, "score": 0.31, "gain": 0.02, "weight": 1.0,
     "targets": [{"target": "…", "score": 0.58}, …],
     "cluster": 3, "cost": 412, "parts": {"image": 0.28, "text": 0.04, "interaction": 0.01}}

``cluster`` is there when the selector made clusters, ``cost`` when the budget was not a count of examples, ``parts``
when the scores were split by modality (null in a row without a split).
``subset.meta.json`` holds all that made it. Neither holds a time or anything else that a rerun would change.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from backcast.collector import no_cycle_collector
from backcast.data import Rows
from backcast.data.places import map_names
from backcast.errors import InputError
from backcast.files import read_json, whole_file, write_json

SCHEMA = 1

#: How many folders above the manifest's own a data set may lie and still be named by a relative path.
LEVELS = 2

#: How many lines are parsed at once: in one call they share the strings of their keys, in half the time.
BLOCK = 1000

Fields = Mapping[str, type | UnionType]

_LINE: Fields = {
    "row": int,
    "id": str,
    "source": str,
    "rank": int,
    "score": float | int | None,
    "gain": float | int | None,
    "weight": float | int,
    "targets": list,
}
_LINE_OPTIONAL: Fields = {"cluster": int, "cost": float | int | None, "parts": dict}
_META: Fields = {
    "sha256": str,
    "dataset": dict,
    "budget": dict,
    "selector": dict,
    "seed": int,
    "origin": dict,
    "versions": dict,
}
_META_OPTIONAL: Fields = {"dropped": dict, "parts": dict, "run": dict}
_DATASET: Fields = {"path": str, "columns": dict, "fingerprint": str, "n": int}


@dataclass(frozen=True, eq=False)
class Manifest:
    """A selection as it is on disk.

    Attributes:
        path: the ``*.jsonl`` file; its ``*.meta.json`` lies beside it.
        lines: one object a chosen row, in rank order.
        meta: ``dataset`` (path, columns, fingerprint, n), ``budget`` (asked, got), ``selector`` (method,
            params), ``dropped`` (what the filters took out: total, reasons, and the first rows), ``seed``, ``scores``
            and ``origin`` (what made them), ``parts`` (how they were split, if they were), ``constraints`` and
            ``groups`` (if there were any), ``run`` (the configuration that makes it again), ``versions``; on disk
            also ``schema`` and the ``sha256`` of the lines, which ties the two files together.
    """

    path: Path
    lines: tuple[Mapping[str, Any], ...]
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def rows(self) -> np.ndarray:
        """(k,) int64, the chosen rows of the data set, in rank order."""
        return np.asarray([line["row"] for line in self.lines], dtype=np.int64)

    @property
    def ids(self) -> tuple[str, ...]:
        """The chosen examples' content ids."""
        return tuple(line["id"] for line in self.lines)

    def positions(self, rows: Rows) -> np.ndarray:
        """(k,) where the chosen rows stand among ``rows``, in rank order.

        Raises `InputError` where one is not there or is another example.
        """
        order = np.argsort(rows.rows, kind="stable")
        found = order[np.searchsorted(rows.rows, self.rows, sorter=order).clip(max=len(order) - 1)]
        for position, row, name in zip(found.tolist(), self.rows.tolist(), self.ids, strict=True):
            if rows.rows[position] != row or rows.ids[position] != name:
                raise InputError(f"row {row} is not the example that {self.path} names; see 'backcast check'")
        return found

    @property
    def weights(self) -> np.ndarray:
        """(k,) float64, how much each example counts in training."""
        return np.asarray([line["weight"] for line in self.lines], dtype=np.float64)

    @property
    def dataset(self) -> str:
        """Where the data set is: absolute paths and hub ids, separated by commas; empty when it was made in memory."""
        folder = self.path.resolve().parent

        def absolute(name: str) -> str:
            return os.path.normpath(folder / name) if name.split("/")[0] in (".", "..") else name

        return map_names(self.meta["dataset"]["path"], absolute)

    def with_parts(self, parts: Mapping[str, np.ndarray], made: Mapping[str, Any]) -> Manifest:
        """The same selection with its rows' parts: name → (k,), in rank order; ``made`` says how they were split."""
        columns = {name: [number(v) for v in values] for name, values in parts.items()}
        lines = [
            {**line, "parts": {name: values[k] for name, values in columns.items()}}
            for k, line in enumerate(self.lines)
        ]
        return replace(self, lines=tuple(lines), meta={**self.meta, "parts": dict(made)})

    def save(self) -> None:
        """Write both files, the meta last: the lines are no manifest without it, nor with an older one."""
        beside = meta_path(self.path)
        encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
        digest = hashlib.sha256()
        with whole_file(self.path) as file:
            for line in self.lines:
                raw = encode(line).encode() + b"\n"
                digest.update(raw)
                file.write(raw)
        write_json(beside, {**self.meta, "schema": SCHEMA, "sha256": digest.hexdigest()})

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read what `save` wrote; raises `InputError` that names the file and line for anything else."""
        path = Path(path)
        beside = meta_path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such manifest; write one with 'backcast select'")
        if not beside.is_file():
            raise InputError(f"{path}: its {beside.name} is missing; put it back beside it or select again")
        meta = read_json(beside)
        if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
            raise InputError(f"{beside}:1: not the meta file of a manifest of schema {SCHEMA}; select again")
        _expect(meta, _META, f"{beside}:1")
        _expect_optional(meta, _META_OPTIONAL, f"{beside}:1")
        _expect(meta["dataset"], _DATASET, f"{beside}:1")
        lines, digest = _read_lines(path)
        if digest != meta["sha256"]:
            raise InputError(
                f"{path}:{len(lines)}: the file is not the one that {beside.name} was written for "
                "(it was cut off, edited or replaced); select again"
            )
        return cls(path, lines, meta)


def meta_path(path: str | Path) -> Path:
    """The meta file of the manifest ``path``; raises `InputError` for a name that no manifest can have."""
    path = Path(path)
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: a manifest's name ends in .jsonl")
    return path.with_suffix(".meta.json")


def _read_lines(path: Path) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """The checked lines, O(1) each, and the SHA-256 of them all."""
    lines: list[Mapping[str, Any]] = []
    digest = hashlib.sha256()
    with open(path, "rb") as file, no_cycle_collector():
        while raw := list(islice(file, BLOCK)):
            digest.update(b"".join(raw))
            first = len(lines) + 1
            for rank, line in enumerate(_parsed(raw, first, path), start=first):
                _check_line(line, rank, f"{path}:{rank}")
                lines.append(line)
    return tuple(lines), digest.hexdigest()


def _check_line(line: Any, rank: int, where: str) -> None:
    _expect(line, _LINE, where)
    _expect_optional(line, _LINE_OPTIONAL, where)
    if line["rank"] != rank:
        raise InputError(f"{where}: rank {line['rank']} where {rank} belongs; select again")
    if not 0 <= line["weight"] < math.inf:
        raise InputError(f"{where}: weight {line['weight']}, which is no weight; select again")


def _parsed(raw: Sequence[bytes], rank: int, path: Path) -> list[Any]:
    """The values of some lines, the first of which is line ``rank``."""
    try:
        values = json.loads(b"[" + b",".join(raw) + b"]")
        if len(values) == len(raw):
            return values
    except ValueError:
        pass
    return [
        _value(line, f"{path}:{k}") for k, line in enumerate(raw, start=rank)
    ]  # finds the line that is broken


def _value(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise InputError(f"{where}: not a JSON object, perhaps cut off; select again") from None


def _expect(value: Any, fields: Fields, where: str) -> None:
    for name, kind in fields.items():
        if not isinstance(value, dict) or not isinstance(value.get(name, ...), kind):
            raise InputError(f"{where}: not part of a manifest ({name!r} is missing or wrong); select again")


def _expect_optional(value: Mapping[str, Any], fields: Fields, where: str) -> None:
    for name, kind in fields.items():
        if name in value and not isinstance(value[name], kind):
            raise InputError(f"{where}: not part of a manifest ({name!r} is wrong); select again")


def portable(dataset: str, folder: Path) -> str:
    """How a manifest in ``folder`` names a data set, of one place or several, so that they can be moved together.

    A path relative to the manifest, beginning with ``.`` or ``..``, for a place that lies beside it, below
    it, or under a folder at most `LEVELS` above; else the absolute path. A hub id, like an empty name, stays
    as it is.
    """
    return map_names(dataset, lambda name: portable_path(name, folder))


def portable_path(name: str, folder: Path) -> str:
    """One place's part of `portable`."""
    if not os.path.isabs(name):
        return name
    common = Path(os.path.commonpath([name, folder]))
    if common == Path(common.anchor) or len(folder.parts) - len(common.parts) > LEVELS:
        return name
    relative = Path(os.path.relpath(name, folder)).as_posix()
    return relative if relative.split("/")[0] == ".." else f"./{relative}"


def number(value: float) -> float | None:
    """A JSON number of nine digits, which tell any two float32 apart; null for NaN."""
    return None if np.isnan(value) else float(f"{value:.9g}")
