"""Whether a manifest still fits its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.manifests.manifest import Manifest


@dataclass(frozen=True)
class Report:
    """Whether a manifest fits its data; true when it does.

    Attributes:
        manifest, data: what was compared.
        lines: how many rows the manifest names.
        moved: (row, new row) of examples that are now elsewhere.
        changed: rows that hold something else, their examples being nowhere in the data.
        missing: rows past the end of the data, their examples being nowhere in the data.
        duplicated: rows that the manifest names more than once.
        pool: (examples in the data, examples that were selected from).
        same_pool: whether the whole data set is the one that was selected from. The subset may fit another:
            rows were added or changed that were not chosen, or only a part of the data was the pool.
    """

    manifest: str
    data: str
    lines: int
    moved: tuple[tuple[int, int], ...]
    changed: tuple[int, ...]
    missing: tuple[int, ...]
    duplicated: tuple[int, ...]
    pool: tuple[int, int]
    same_pool: bool

    @property
    def ok(self) -> bool:
        return not (self.moved or self.changed or self.missing or self.duplicated)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def summary(self) -> str:
        """One line."""
        if self.ok:
            now, then = self.pool
            other = f"of {then} examples, these are {now}" if now != then else "with other rows beside them"
            note = "" if self.same_pool else f" (but were chosen from a pool {other})"
            return f"{self.manifest}: all {self.lines} rows fit {self.data}{note}"
        faults = [
            f"{len(rows)} {name} (first: row {rows[0]})"
            for name, rows in (
                ("moved", [f"{old}, now {new}" for old, new in self.moved]),
                ("changed", self.changed),
                ("missing", self.missing),
                ("named twice", self.duplicated),
            )
            if rows
        ]
        return f"{self.manifest}: of {self.lines} rows in {self.data}: {', '.join(faults)}; select again"


def check(path: str | Path, data: str | Path | Examples | None = None) -> Report:
    """Compare a manifest with its data set, or with ``data`` (a path, a hub id, or examples in memory).

    Every example is read and its content hashed, so that a changed pixel or letter is found.

    Raises:
        InputError: the manifest or the data cannot be read.
    """
    return compare(Manifest.load(path), data)


def compare(manifest: Manifest, data: str | Path | Examples | None) -> Report:
    if isinstance(data, Examples):
        examples, name = data, data.dataset or "memory"
    else:
        place = place_of(manifest, data)
        # A row that was left out for its image still has its place.
        examples = read_examples(place, manifest.meta["dataset"]["columns"], skip_broken=True)
        name = str(place)
    found = {example.row: example.id for example in examples}
    places = {example.id: example.row for example in reversed(examples)}
    end = max((*found, *(row for row, _ in examples.skipped)), default=-1)

    gone = [line for line in manifest.lines if found.get(line["row"]) != line["id"]]
    lost = [line["row"] for line in gone if line["id"] not in places]
    rows, counts = np.unique(manifest.rows, return_counts=True)
    pool = manifest.meta["dataset"]
    return Report(
        manifest=str(manifest.path),
        data=name,
        lines=len(manifest),
        moved=tuple((line["row"], places[line["id"]]) for line in gone if line["id"] in places),
        changed=tuple(row for row in lost if row <= end),
        missing=tuple(row for row in lost if row > end),
        duplicated=tuple(rows[counts > 1].tolist()),
        pool=(len(examples), pool["n"]),
        same_pool=examples.index.fingerprint == pool["fingerprint"],
    )


def place_of(manifest: Manifest, data: str | Path | None) -> str | Path:
    place = data or manifest.dataset
    if not place:
        raise InputError(
            f"{manifest.path}: selected from examples in memory; say which data set holds them now"
        )
    return place
