"""What the selectors that compare examples share: quality, exact products, and greedy loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from backcast.errors import InputError
from backcast.progress import progress
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection
from backcast.vectors import Features, fixed

#: Rows whose products with the picks are made at once.
BLOCK = 4096

#: Candidates whose values are kept up to date, while those of the others wait.
AHEAD = 2048

#: Fraction bits of a quality, and of a mean direction: a point's product with either is exact in float64.
QUALITY_BITS, MEAN_BITS = 20, 24

_NEVER = -np.inf


@dataclass(frozen=True, eq=False)
class Useful:
    """The p examples of positive quality that have a direction, in the order in which ties are broken.

    Example i's *quality* is its score for the target that it serves best, negative ones as zero, over the largest, to
    a given power; one without scores, or with a power of zero. The best target rather than the mean: what helps one
    target and hinders the others has a low mean, and yet is wanted.

    Attributes:
        order: (n,) all of the pool's positions, from the highest best score to the lowest, ties as ever.
        places: (p,) those of the useful ones, in that order.
        quality: (p,) float64, in multiples of 2⁻²⁰.
        features: their p rows.
    """

    order: np.ndarray
    places: np.ndarray
    quality: np.ndarray
    features: Features

    @classmethod
    def of(cls, evidence: Evidence, power: float, asker: str) -> Useful:
        features = evidence.need_features(asker)
        quality = qualities(evidence, power)
        order = evidence.ranked(evidence.best)
        useful = np.flatnonzero(quality > 0)  # looked through as they lie: a store reads them shard by shard
        for at, block in features.take(useful).blocks():
            quality[useful[at]] *= block.any(axis=1)
        places = order[quality[order] > 0]
        return cls(order, places, quality[places], features.take(places))

    def __len__(self) -> int:
        return len(self.places)

    def selection(
        self, evidence: Evidence, allowance: Allowance, picks: list[int], gains: np.ndarray
    ) -> Selection:
        """The picks, and what else fits into the allowance, in order, with gains of zero."""
        chosen = self.places[picks]
        taken = np.zeros(len(evidence), dtype=bool)
        taken[chosen] = True
        rest = allowance.first(self.order[~taken[self.order]])
        return Selection(
            evidence, np.concatenate([chosen, rest]), np.concatenate([gains, np.zeros(len(rest))])
        )


def qualities(evidence: Evidence, power: float) -> np.ndarray:
    """(n,) float64, each example's quality; see `Useful`."""
    if evidence.scores is None or power == 0:
        return np.ones(len(evidence))
    score = np.maximum(evidence.best, 0)
    return fixed((score / (score.max() or 1)) ** power, QUALITY_BITS)


def check_quality(asker: str, power: float) -> None:
    """Refuse a power that is none."""
    if not 0 <= power < float("inf"):
        raise InputError(f"{asker}: quality={power!r} must be a number from 0 up")


def blocks(n: int) -> Iterator[slice]:
    """The places 0 … n − 1, `BLOCK` at a time."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def squares(points: np.ndarray) -> np.ndarray:
    """(p,) float64, the points' squared norms, exact."""
    found = np.empty(len(points))
    for at in blocks(len(points)):
        found[at] = np.square(points[at]).sum(axis=1)
    return found


def mean_direction(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(d,) float64, the points' weighted mean in multiples of 2⁻²⁴; no order of sums changes it below 2²² points."""
    total = np.zeros(points.shape[1])
    for at in blocks(len(points)):
        total += weights[at] @ points[at].astype(np.float64)
    return fixed(total / (weights.sum() or 1), MEAN_BITS)


def products(points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(p,) float64, the points' products with a float64 direction, exact where its numbers have few enough bits."""
    found = np.empty(len(points))
    for at in blocks(len(points)):
        found[at] = points[at].astype(np.float64) @ direction
    return found


class Falling(Protocol):
    """What a pick would be worth, for each of p candidates, where a pick can only lower that of the others."""

    def __getitem__(self, some: slice | np.ndarray) -> Self:
        """The same of some of the candidates."""
        ...

    def mark(self, j: int, value: float) -> Any:
        """Candidate j is picked at this value: what the others' values depend on."""
        ...

    def lower(self, values: np.ndarray, marks: list[Any]) -> None:
        """Bring the (p,) values up to date in place, by the marks, in order.

        It must come to the same bits whatever the number of marks and of candidates at a time.
        """
        ...


def greedy(
    falling: Falling, values: np.ndarray, allowance: Allowance, names: np.ndarray, least: float = _NEVER
) -> tuple[list[int], np.ndarray]:
    """The picks of the highest value, one after another, and their (k,) values; ties go to the lower place.

    A value only falls, so an old one is an upper bound (Minoux 1978). The values of the `AHEAD` highest are kept up to
    date from pick to pick; as long as the highest of them is above all the old ones, it is the highest of all. Only
    when it is not are the others brought up to date, by all the picks since in one matrix product, and new candidates
    chosen. The picks are those of the plain loop, at the speed of the memory's cache.

    Args:
        values: (p,) float64, before the first pick; used up.
        names: (p,) the candidates' positions in the allowance.
        least: stop where no value is above this.
    """
    picks: list[int] = []
    worth: list[float] = []
    marks: list[Any] = []
    with progress("greedy picks", allowance.size) as done:
        while not allowance.full:
            for at in blocks(len(values)):
                falling[at].lower(values[at], marks)
            marks = []
            ahead, bound = _highest(values)
            near, own, fresh = falling[ahead], values[ahead], True
            while not allowance.full:
                best = int(own.argmax()) if len(own) else -1
                if best < 0 or own[best] <= least:
                    break
                if own[best] <= bound and not fresh:  # one of the others may be as high, and come first
                    break
                j, value, fresh = int(ahead[best]), float(own[best]), False
                own[best] = values[j] = _NEVER
                if not allowance.fits(names[j]):
                    continue
                allowance.take(names[j])
                picks.append(j)
                worth.append(value)
                marks.append(falling.mark(j, value))
                near.lower(own, marks[-1:])
                done(1)
            if fresh:  # not even the highest of all will do
                break
    return picks, np.asarray(worth)


def _highest(values: np.ndarray) -> tuple[np.ndarray, float]:
    """The places of the highest values, rising, the lower of equals first; and the highest of the other values."""
    order = np.argsort(-values, kind="stable")
    ahead, others = order[:AHEAD], order[AHEAD : AHEAD + 1]
    return np.sort(ahead), float(values[others[0]]) if len(others) else _NEVER
