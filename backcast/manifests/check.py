"""Whether a manifest still fits its data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backcast.data import Examples, read_examples
from backcast.errors import InputError
from backcast.manifests.manifest import Manifest

#: How many of each fault a report's JSON lists.
LISTED = 5


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
        repeated: (row, times) of chosen examples whose content the data hold several times. No fault: the manifest
            fits, but a reader who takes all the copies trains on more than was chosen.
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
    repeated: tuple[tuple[int, int], ...]
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
            return f"{self.manifest}: all {self.lines} rows fit {self.data}{self._notes}"
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

    @property
    def _notes(self) -> str:
        """What else there is to know of a manifest that fits."""
        notes = ""
        if not self.same_pool:
            now, then = self.pool
            other = f"of {then} examples, these are {now}" if now != then else "with other rows beside them"
            notes += f" (but were chosen from a pool {other})"
        if self.repeated:
            row, times = self.repeated[0]
            notes += f"; the data hold {len(self.repeated)} of them several times (first: row {row}, {times} times)"
        return notes

    def to_json(self) -> dict[str, Any]:
        """How many there are of each fault, and under ``first`` the first `LISTED` of each."""
        kinds = ("moved", "changed", "missing", "duplicated", "repeated")
        found = {kind: getattr(self, kind) for kind in kinds}
        return {
            "ok": self.ok,
            "lines": self.lines,
            **{kind: len(rows) for kind, rows in found.items()},
            "first": {kind: [*rows[:LISTED]] for kind, rows in found.items()},
            "pool": dict(zip(("now", "then"), self.pool, strict=True)),
            "same_pool": self.same_pool,
            "summary": self.summary,
        }


def check(path: str | Path, data: str | Path | Examples | None = None) -> Report:
    """Compare a manifest with its data set, or with ``data`` (a path, a hub id, or examples in memory).

    Every example is read and its content hashed, so that a changed pixel or letter is found; ids alone are held,
    O(n) time and memory for n examples, whatever their size.

    Raises:
        InputError: the manifest or the data cannot be read.
    """
    manifest = Manifest.load(path)
    return compare(manifest, *opened(manifest, data))


def opened(manifest: Manifest, data: str | Path | Examples | None) -> tuple[Examples, str]:
    """The examples that a manifest is to be compared with, and what to call them."""
    if isinstance(data, Examples):
        return data, data.dataset or "memory"
    place = place_of(manifest, data)
    # A row that was left out for its image still has its place.
    return read_examples(place, manifest.meta["dataset"]["columns"], skip_broken=True), str(place)


def compare(manifest: Manifest, examples: Examples, name: str) -> Report:
    """Whether the manifest fits the examples; O(n + k) time, O(k) memory beside the examples' ids."""
    rows, ids = set(manifest.rows.tolist()), set(manifest.ids)
    found: dict[int, str] = {}  # chosen row → the id that is there now
    places: dict[str, int] = {}  # chosen id → the first row where it is now
    times: Counter[str] = Counter()
    for row, content in zip(examples.index.rows.tolist(), examples.index.ids, strict=True):
        if row in rows:
            found[row] = content
        if content in ids:
            places.setdefault(content, row)
            times[content] += 1
    end = max(examples.index.rows.max(initial=-1), max((row for row, _ in examples.skipped), default=-1))

    gone = [line for line in manifest.lines if found.get(line["row"]) != line["id"]]
    lost = [line["row"] for line in gone if line["id"] not in places]
    named, counts = np.unique(manifest.rows, return_counts=True)
    pool = manifest.meta["dataset"]
    return Report(
        manifest=str(manifest.path),
        data=name,
        lines=len(manifest),
        moved=tuple((line["row"], places[line["id"]]) for line in gone if line["id"] in places),
        changed=tuple(row for row in lost if row <= end),
        missing=tuple(row for row in lost if row > end),
        duplicated=tuple(named[counts > 1].tolist()),
        repeated=tuple((line["row"], times[line["id"]]) for line in manifest.lines if times[line["id"]] > 1),
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
