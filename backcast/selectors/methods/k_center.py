"""A set that leaves nothing far away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.greedy import Useful, check_quality, greedy, mean_direction, products, squares
from backcast.selectors.selection import Selection

#: A value above every distance, so that the first pick is made by what is added to it.
BEYOND = 4.0


@dataclass(frozen=True)
class KCenter:
    """Greedy minimisation of max_i w_i min_{j∈S} (1 − cos(i, j)): the next pick is the example that is farthest from
    all picks.

    w_i is example i's quality (`Useful`), so that a spoilt outlier need not be near a pick. The first pick is the
    example with the highest best score; without scores, the one nearest to the mean of the rows. The rows are points
    in multiples of 2⁻¹¹, their distance is ½‖x_i − x_j‖², exactly zero for copies: with equal weights the radius is at
    most four times the best possible (twice, in the unsquared distance).

    A pick's gain is its own weighted distance from the picks before it: the radius that these left; NaN for the first.
    Where nothing is left to cover, the rest goes by best score, mean score and content id, with gains of zero. Time at
    most O(p d k), memory 4 p d bytes, for p examples of positive quality.

    Args:
        quality: the power of the quality; 0 counts all examples alike, whatever the scores.

    Source: Gonzalez 1985, Clustering to minimize the maximum intercluster distance; with weights Dyer & Frieze 1985, A
    simple heuristic for the p-centre problem; as a core-set Sener & Savarese 2018, Active learning for convolutional
    neural networks (algorithm 1).
    """

    quality: float = 2.0

    def __post_init__(self) -> None:
        check_quality("k_center", self.quality)

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        useful = Useful.of(evidence, self.quality, "k_center")
        points = useful.features.points()
        first = np.full(len(useful), BEYOND)
        if evidence.scores is None:
            first += products(points, mean_direction(points, useful.quality))
        distances = _Distances(points, squares(points) / 2, useful.quality)
        picks, gains = greedy(distances, first, allowance, useful.places, least=0)
        gains[:1] = np.nan
        return useful.selection(evidence, allowance, picks, gains)


@dataclass(frozen=True)
class _Distances:
    """Weighted distances to the nearest pick.

    Attributes:
        points: (p, d).
        halves: (p,) half their squared norms.
        weights: (p,).
    """

    points: np.ndarray
    halves: np.ndarray
    weights: np.ndarray

    def __getitem__(self, some: slice | np.ndarray) -> _Distances:
        return _Distances(self.points[some], self.halves[some], self.weights[some])

    def mark(self, j: int, value: float) -> tuple[np.ndarray, float]:
        return self.points[j], float(self.halves[j])

    def lower(self, values: np.ndarray, marks: list[tuple[np.ndarray, float]]) -> None:
        if marks:
            picks, halves = np.stack([point for point, _ in marks]), np.asarray([half for _, half in marks])
            nearer = (halves - self.points @ picks.T).min(axis=1)
            np.minimum(values, self.weights * (self.halves + nearer), out=values)
