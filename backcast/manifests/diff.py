"""What tells two subsets apart: overlap, sources, scores, and how they were made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backcast.manifests.manifest import Manifest, number

#: How many examples of each side are listed, the first in rank order.
LISTED = 5

QUANTILES = {"5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95}

#: What tells nothing of how a manifest was made: what follows from the rest, and the run, which repeats it.
_FOLLOWS = ("sha256", "schema", "dropped", "run", "budget.got")

Line = Mapping[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Overlap:
    """How much two subsets share; examples are told apart by their content.

    Attributes:
        a, b: how many examples are in each.
        common: in both.
        pool: how many there were to choose from; None when the two were chosen from different pools.
    """

    a: int
    b: int
    common: int
    pool: int | None

    @property
    def jaccard(self) -> float:
        """|A ∩ B| / |A ∪ B|."""
        return self.common / max(self.a + self.b - self.common, 1)

    @property
    def expected(self) -> float | None:
        """The mean overlap of two random subsets of these sizes: a b / n, the hypergeometric distribution's."""
        return None if self.pool is None else self.a * self.b / self.pool

    @property
    def spread(self) -> float | None:
        """The standard deviation of that overlap: √(a b (n − a) (n − b) / (n² (n − 1)))."""
        if self.pool is None:
            return None
        n = self.pool
        return math.sqrt(self.a * self.b * (n - self.a) * (n - self.b) / max(n - 1, 1)) / n

    def to_json(self) -> Row:
        return {
            "a": self.a,
            "b": self.b,
            "common": self.common,
            "jaccard": self.jaccard,
            "pool": self.pool,
            "expected": self.expected,
            "spread": self.spread,
        }


@dataclass(frozen=True)
class Difference:
    """Two subsets side by side.

    Attributes:
        a, b: the manifests' paths.
        overlap: how much they share.
        sources: a row a source: how many of its examples are in each, the shares, and by how much b's is larger.
        scores: a row each for the common examples, by a's scores and by b's, and for those in one alone: their number,
            mean and quantiles. Empty when neither has scores.
        agreement: Spearman's rank correlation of the two scores of the common examples; None without two different
            scores in each.
        made: what they were made with, where they differ: (name, a's, b's), None for what one lacks.
        only_a, only_b: the first examples, in rank order, that one of them alone has.
    """

    a: str
    b: str
    overlap: Overlap
    sources: tuple[Row, ...]
    scores: tuple[Row, ...]
    agreement: float | None
    made: tuple[tuple[str, Any, Any], ...]
    only_a: tuple[Row, ...]
    only_b: tuple[Row, ...]

    @property
    def shift(self) -> float:
        """The share of b that comes from other sources than in a: the total variation distance, Σ |shift| / 2."""
        return sum(abs(row["shift"]) for row in self.sources) / 2

    @property
    def summary(self) -> str:
        """One line."""
        o = self.overlap
        chance = (
            "chosen from different pools"
            if o.expected is None
            else f"two random subsets of a pool of {o.pool} would share {o.expected:.1f} ± {o.spread:.1f}"
        )
        return f"{o.common} of {o.a} and {o.b} examples are in both (Jaccard {o.jaccard:.3f}); {chance}"

    def to_json(self) -> Row:
        """A JSON object of all of it."""
        return {
            "a": self.a,
            "b": self.b,
            "summary": self.summary,
            "overlap": self.overlap.to_json(),
            "sources": list(self.sources),
            "shift": self.shift,
            "scores": list(self.scores),
            "agreement": self.agreement,
            "made": [dict(zip(("what", "a", "b"), row, strict=True)) for row in self.made],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }


def diff(a: Manifest | str | Path, b: Manifest | str | Path) -> Difference:
    """Compare two subsets; O(k log k) for k examples, the data are not read.

    Args:
        a, b: manifests or their paths.

    Raises:
        InputError: a manifest cannot be read.
    """
    a, b = (m if isinstance(m, Manifest) else Manifest.load(m) for m in (a, b))
    in_a, in_b = ({line["id"]: line for line in m.lines} for m in (a, b))
    common = [key for key in in_a if key in in_b]
    only_a = [line for key, line in in_a.items() if key not in in_b]
    only_b = [line for key, line in in_b.items() if key not in in_a]
    groups = {
        "common, scored by a": _scores(in_a[key] for key in common),
        "common, scored by b": _scores(in_b[key] for key in common),
        "only in a": _scores(only_a),
        "only in b": _scores(only_b),
    }
    return Difference(
        a=str(a.path),
        b=str(b.path),
        overlap=Overlap(len(in_a), len(in_b), len(common), _pool(a, b)),
        sources=_sources(list(in_a.values()), list(in_b.values())),
        scores=tuple(
            _described(name, values) for name, values in groups.items() if np.isfinite(values).any()
        ),
        agreement=_spearman(groups["common, scored by a"], groups["common, scored by b"]),
        made=tuple(_differing(_made(a), _made(b))),
        only_a=_told(only_a),
        only_b=_told(only_b),
    )


def _pool(a: Manifest, b: Manifest) -> int | None:
    """How many examples both were chosen from, if that was the same pool."""
    one, other = a.meta["dataset"], b.meta["dataset"]
    return one["n"] if one["fingerprint"] == other["fingerprint"] else None


def _sources(a: Sequence[Line], b: Sequence[Line]) -> tuple[Row, ...]:
    """Those with the most examples in both together first."""
    in_a, in_b = (Counter(line["source"] for line in lines) for lines in (a, b))
    rows = []
    for source, _ in sorted((in_a + in_b).items(), key=lambda item: (-item[1], item[0])):
        share_a, share_b = in_a[source] / max(len(a), 1), in_b[source] / max(len(b), 1)
        rows.append(
            {
                "source": source,
                "a": in_a[source],
                "b": in_b[source],
                "share_a": share_a,
                "share_b": share_b,
                "shift": share_b - share_a,
            }
        )
    return tuple(rows)


def _scores(lines: Iterable[Line]) -> np.ndarray:
    """float64, NaN for a row without a score."""
    return np.asarray([line["score"] for line in lines], dtype=np.float64)


def _described(name: str, values: np.ndarray) -> Row:
    values = values[np.isfinite(values)]
    quantiles = np.quantile(values, list(QUANTILES.values()))
    return {
        "examples": name,
        "n": len(values),
        "mean": number(values.mean()),
        **{name: number(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
    }


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    from scipy.stats import spearmanr

    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None
    return float(spearmanr(a, b).statistic)


def _made(manifest: Manifest) -> dict[str, Any]:
    """What the manifest was made with, by dotted names."""
    dataset = {**manifest.meta["dataset"], "path": manifest.dataset}
    return dict(_flat({**manifest.meta, "dataset": dataset}))


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{above}{key}"
        if name in _FOLLOWS:
            continue
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{name}.")
        else:
            yield name, inner


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b or a[name] != b[name]:
            yield name, a.get(name), b.get(name)


def _told(lines: Sequence[Line]) -> tuple[Row, ...]:
    return tuple(
        {key: line[key] for key in ("rank", "row", "source", "score", "id")} for line in lines[:LISTED]
    )
