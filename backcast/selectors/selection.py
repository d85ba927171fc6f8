"""The chosen examples, and the protocol of what chooses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, Protocol, runtime_checkable

import numpy as np

from backcast.data import split_names
from backcast.data.examples import Rows
from backcast.errors import InputError
from backcast.manifests.manifest import Manifest, number, portable
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence, take_rows

#: How many of the targets that a row serves best its manifest line names.
TARGETS = 3

#: How many of the rows that filters dropped a manifest lists; it counts them all.
LISTED = 1000


@dataclass(frozen=True, eq=False)
class Dropped:
    """The examples that a filter kept from the selector for one reason.

    Attributes:
        filter: its name.
        reason: in the filter's own words.
        indices: positions in the pool, ascending; often none.
    """

    filter: str
    reason: str
    indices: np.ndarray


@dataclass(frozen=True, eq=False)
class Selection:
    """A subset of a pool, in the order in which it was chosen.

    Attributes:
        evidence: the whole pool.
        indices: (k,) positions in the pool, the first pick first.
        gains: (k,) float64, by how much each pick raised the selector's objective; NaN where it has none.
        weights: (k,) float64, how much each pick counts in training; None where all count 1.
        clusters: (k,) int64, the cluster that each pick was taken from; None where there are none.
        costs: (k,) float64, what each pick took off the budget; None for a budget of examples.
        notes: what the selector tells of its own run, as JSON.
        why: the budget asked and got, the selector and its parameters, the seed, and what made the scores.
        dropped: what the filters took out, an entry for every filter and reason.
    """

    evidence: Evidence
    indices: np.ndarray
    gains: np.ndarray
    weights: np.ndarray | None = None
    clusters: np.ndarray | None = None
    costs: np.ndarray | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    why: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def rows(self) -> Rows:
        """The chosen examples' `Rows`, in rank order."""
        return take_rows(self.evidence.rows, self.indices)

    @property
    def scores(self) -> np.ndarray | None:
        """(k,) the chosen examples' mean scores; None when the pool was not scored."""
        return None if self.evidence.scores is None else self.evidence.mean[self.indices]

    def save(self, path: str | Path) -> Manifest:
        """Write the manifest ``path`` (``*.jsonl``) and its ``*.meta.json``; see `Manifest`.

        Two saves of the same selection are equal byte for byte. Raises `InputError` for a name that is no manifest's,
        or is the pool's own file.
        """
        pool, folder = self.evidence.rows, Path(path).resolve().parent
        if str(Path(path).resolve()) in split_names(pool.dataset):
            raise InputError(f"{path}: is the pool itself; choose another name for the manifest")
        meta = {
            **_portable_target(self.why, folder),
            "dataset": {
                "path": portable(pool.dataset, folder),
                "columns": dict(pool.columns),
                "fingerprint": pool.fingerprint,
                "n": len(pool),
            },
            "dropped": self._told(),
            "versions": {"python": python_version(), "numpy": np.__version__, "backcast": _own_version()},
        }
        manifest = Manifest(Path(path), tuple(self._line(k) for k in range(len(self))), meta)
        manifest.save()
        return manifest

    def _told(self) -> dict[str, Any]:
        """What the filters dropped: how many by filter and reason, and the first `LISTED` rows of the pool's order."""
        rows = self.evidence.rows
        counts: dict[str, dict[str, int]] = {}
        for group in self.dropped:
            by_reason = counts.setdefault(group.filter, {})
            by_reason[group.reason] = by_reason.get(group.reason, 0) + len(group.indices)
        listed = sorted(
            (i, group.filter, group.reason) for group in self.dropped for i in group.indices[:LISTED]
        )
        return {
            "total": sum(len(group.indices) for group in self.dropped),
            "reasons": counts,
            "rows": [
                {"row": int(rows.rows[i]), "id": rows.ids[i], "filter": name, "reason": reason}
                for i, name, reason in listed[:LISTED]
            ],
        }

    def _line(self, k: int) -> dict[str, Any]:
        i = self.indices[k]
        rows, scored, parts = self.evidence.rows, self.evidence.scores is not None, self.evidence.parts
        line = {
            "row": int(rows.rows[i]),
            "id": rows.ids[i],
            "source": rows.sources[i],
            "rank": k + 1,
            "score": number(self.evidence.mean[i]) if scored else None,
            "gain": number(self.gains[k]),
            "weight": 1.0 if self.weights is None else number(self.weights[k]),
            "targets": self._served(i),
        }
        if self.clusters is not None:
            line["cluster"] = int(self.clusters[k])
        if self.costs is not None:
            line["cost"] = number(self.costs[k])
        if parts is not None:
            line["parts"] = {name: number(parts[name][i]) for name in parts}
        return line

    def _served(self, i: int) -> list[dict[str, Any]]:
        """The targets that example ``i`` serves best, best first."""
        if self.evidence.scores is None:
            return []
        scores, names = self.evidence.scores[i], self.evidence.targets
        best = np.argsort(-scores, kind="stable")[:TARGETS]
        return [{"target": names[t], "score": number(scores[t])} for t in best]


class Selector(Protocol):
    """Chooses examples; its parameters are the fields of a frozen dataclass."""

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        """What fits into the allowance, the first pick first; draws come from ``rng``, in `by_id` order."""
        ...


@runtime_checkable
class Filter(Protocol):
    """Says which examples a selector may not see, and why; its parameters are the fields of a frozen dataclass."""

    def drop(self, evidence: Evidence) -> Mapping[str, np.ndarray]:
        """reason → positions to drop, ascending, each under one reason; every reason it has, also those that drop
        none."""
        ...


@runtime_checkable
class Divider(Protocol):
    """Divides a budget among parts of the pool, or among the groups of targets, for another selector."""

    def over(self, selector: Selector) -> Selector:
        """The selector that fills each share with the picks of ``selector``."""
        ...


def _portable_target(why: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """``why`` with the place of the target's data written like that of the pool's."""
    origin = why.get("origin", {})
    if "target" not in origin:
        return why
    target = {**origin["target"], "dataset": portable(origin["target"]["dataset"], folder)}
    return {**why, "origin": {**origin, "target": target}}


def _own_version() -> str:
    try:
        return version("backcast")
    except PackageNotFoundError:
        return "not installed"
