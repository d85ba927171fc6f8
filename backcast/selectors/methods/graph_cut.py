"""A set like the pool and unlike itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.greedy import Useful, check_quality, greedy, mean_direction, products, squares
from backcast.selectors.selection import Selection


@dataclass(frozen=True)
class GraphCut:
    """Greedy maximisation of f(S) = λ Σ_{i∈V} Σ_{j∈S} w_i s_ij w_j − Σ_{i,j∈S} w_i s_ij w_j, s_ij = ½ + ½ cos(i, j).

    w_i is example i's quality (`Useful`). The similarity is never negative, so that f is submodular, and for
    λ ≥ 2 monotone, with greedy within 1 − 1/e of the best; and it is linear in the cosine, so that its sums over the
    pool are one product with the mean direction and no n × n kernel is made. With max(0, cos) instead they would not
    be. Where all weights are equal, the picks are those of the plain cosine.

    The first sum grows with the pool and the second with the picks: where k is far below λ n / 2, the picks are nearly
    those with the highest w_j (1 + cos(j, mean)), the most typical ones. A small λ makes them differ from each other.

    A pick's gain is what it adds to f over Σ_{i∈V} w_i. Time O(p d) for the sums, then at most O(p d) a pick and as a
    rule far less; memory 4 p d bytes, for p examples of positive quality; the others follow by best score, mean score
    and content id, with gains of zero.

    Args:
        balance: λ, above zero.
        quality: the power of the quality; 0 counts all examples alike, whatever the scores.

    Source: Iyer, Khargonkar, Bilmes & Asnani 2021, Submodular combinatorial information measures with applications in
    machine learning.
    """

    balance: float = 2.0
    quality: float = 2.0

    def __post_init__(self) -> None:
        check_quality("graph_cut", self.quality)
        if not 0 < self.balance < float("inf"):
            raise InputError(f"graph_cut: balance={self.balance!r} must be a number above zero")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        useful = Useful.of(evidence, self.quality, "graph_cut")
        points, weights = useful.features.points(), useful.quality
        total = float(weights.sum())
        typical = (1 + products(points, mean_direction(points, weights))) / 2
        alone = (1 + squares(points)) / 2
        first = weights * (self.balance * total * typical - weights * alone)
        picks, values = greedy(_Likeness(points, weights), first, allowance, useful.places)
        return useful.selection(evidence, allowance, picks, values / (total or 1))


@dataclass(frozen=True)
class _Likeness:
    """Weighted similarities to the picks, twice.

    Attributes:
        points: (p, d).
        weights: (p,).
    """

    points: np.ndarray
    weights: np.ndarray

    def __getitem__(self, some: slice | np.ndarray) -> _Likeness:
        return _Likeness(self.points[some], self.weights[some])

    def mark(self, j: int, value: float) -> tuple[np.ndarray, float]:
        return self.points[j], float(self.weights[j])

    def lower(self, values: np.ndarray, marks: list[tuple[np.ndarray, float]]) -> None:
        if marks:
            cosines = np.stack([point for point, _ in marks]) @ self.points.T
            for (_, weight), row in zip(marks, cosines, strict=True):
                values -= weight * self.weights * (1 + row.astype(np.float64))
