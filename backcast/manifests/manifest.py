"""The file of a selection: which rows, why, and whether its data still fit.

``subset.jsonl`` holds a line a row, in rank order::

    {"row": 17, "id": "9f…", "source": "web", "rank": 1, "score": 0.31, "gain": 0.02, "weight": 1.0,
     "targets": [{"target": "…", "score": 0.58}, …],
     "parts": {"image": 0.28, "text": 0.04, "interaction": 0.01}}

``parts`` are there when the scores were split by modality; null in a row without a split.
``subset.meta.json`` holds all that made it. Neither holds a time or anything else that a rerun would change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from backcast.errors import InputError
from backcast.files import read_json, sha256, write_atomic, write_json

SCHEMA = 1

#: How many folders above the manifest's own a data set may lie and still be named by a relative path.
LEVELS = 2

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
_META: Fields = {
    "sha256": str,
    "dataset": dict,
    "budget": dict,
    "selector": dict,
    "seed": int,
    "origin": dict,
    "versions": dict,
}
_DATASET: Fields = {"path": str, "columns": dict, "fingerprint": str, "n": int}


@dataclass(frozen=True, eq=False)
class Manifest:
    """A selection as it is on disk.

    Attributes:
        path: the ``*.jsonl`` file; its ``*.meta.json`` lies beside it.
        lines: one object a chosen row, in rank order.
        meta: ``dataset`` (path, columns, fingerprint, n), ``budget`` (asked, got), ``selector`` (method,
            params), ``dropped`` (what the filters took out: total, reasons, and the first rows), ``seed``, ``scores``
            and ``origin`` (what made them), ``parts`` (how they were split, if they were), ``versions``; on disk also
            ``schema`` and the ``sha256`` of the lines, which ties the two files together.
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

    @property
    def weights(self) -> np.ndarray:
        """(k,) float64, how much each example counts in training."""
        return np.asarray([line["weight"] for line in self.lines], dtype=np.float64)

    @property
    def dataset(self) -> str:
        """Where the data set is: an absolute path or a hub id; empty when it was made in memory."""
        stored = self.meta["dataset"]["path"]
        if stored.split("/")[0] not in (".", ".."):
            return stored
        return os.path.normpath(self.path.resolve().parent / stored)

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
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in self.lines)
        write_atomic(self.path, text)
        write_json(beside, {**self.meta, "schema": SCHEMA, "sha256": sha256(text)})

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
        _expect(meta["dataset"], _DATASET, f"{beside}:1")
        content = path.read_bytes()
        lines = tuple(
            _line(raw, rank, f"{path}:{rank}") for rank, raw in enumerate(content.splitlines(), start=1)
        )
        if sha256(content) != meta["sha256"]:
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


def _line(raw: bytes, rank: int, where: str) -> Mapping[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError:
        raise InputError(f"{where}: not a JSON object, perhaps cut off; select again") from None
    _expect(line, _LINE, where)
    if line["rank"] != rank:
        raise InputError(f"{where}: rank {line['rank']} where {rank} belongs; select again")
    return line


def _expect(value: Any, fields: Fields, where: str) -> None:
    for name, kind in fields.items():
        if not isinstance(value, dict) or not isinstance(value.get(name, ...), kind):
            raise InputError(f"{where}: not part of a manifest ({name!r} is missing or wrong); select again")


def portable(dataset: str, folder: Path) -> str:
    """How a manifest in ``folder`` names a data set, so that the two can be moved together.

    A path relative to the manifest, beginning with ``.`` or ``..``, when the data set lies beside it, below
    it, or under a folder at most `LEVELS` above; else the absolute path. A hub id, like an empty name, stays
    as it is.
    """
    if not os.path.isabs(dataset):
        return dataset
    common = Path(os.path.commonpath([dataset, folder]))
    if common == Path(common.anchor) or len(folder.parts) - len(common.parts) > LEVELS:
        return dataset
    relative = Path(os.path.relpath(dataset, folder)).as_posix()
    return relative if relative.split("/")[0] == ".." else f"./{relative}"


def number(value: float) -> float | None:
    """A JSON number of nine digits, which tell any two float32 apart; null for NaN."""
    return None if np.isnan(value) else float(f"{value:.9g}")
