"""A set that spans as much as it can."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2, sqrt

import numpy as np

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.greedy import Useful, check_quality, greedy, squares
from backcast.selectors.selection import Selection
from backcast.vectors import fixed

#: Fraction bits of the logarithms in the gains: below what machines differ in.
LOG_BITS = 40

#: The least ridge: below it the fixed-point numbers grow too coarse.
RIDGE = 2.0**-10


@dataclass(frozen=True)
class LogDet:
    """Greedy maximisation of f(S) = log det L_S, L = diag(q) (cos + δ I) diag(q): the mode of a determinantal point
    process.

    q_i is example i's quality (`Useful`), the kernel's quality and diversity those of Kulesza & Taskar (2012, §3.1). f
    is submodular; it is monotone only where L's eigenvalues are 1 or more, and only there is 1 − 1/e known.

    A candidate's gain is the logarithm of its variance given the picks, q_i² δ (1 + x_iᵀ A⁻¹ x_i) with
    A = δ I + Σ_{j∈S} x_j x_jᵀ: the fast greedy MAP of Chen et al. with its Cholesky rows (k numbers for each candidate)
    written in the d coordinates of the features, which is all the memory that more picks than directions need. Of each
    pick j one vector u_j is kept, A⁻¹ = I/δ − Σ_j u_j u_jᵀ. It is rounded, so that every inner product with it, and the
    product of these with the u's, is exact in float64: neither the order of a sum nor the number of threads changes a
    pick, at the price of about 10⁻⁶ in A⁻¹.

    Time at most O(p d k + d k²), memory 4 p d + 8 k d bytes, for p examples of positive quality; the others follow by
    best score, mean score and content id, with gains of zero. With more picks than directions the kernel without δ has
    no volume left, and δ decides how fast the next pick turns from what is new to what has quality.

    Args:
        ridge: δ, at least 2⁻¹⁰ and at most 1.
        quality: the power of the quality; 0 counts all examples alike, whatever the scores.

    Source: Chen, Zhang & Zhou 2018, Fast greedy MAP inference for determinantal point process (algorithm 1).
    """

    ridge: float = 0.1
    quality: float = 2.0

    def __post_init__(self) -> None:
        check_quality("log_det", self.quality)
        if not RIDGE <= self.ridge <= 1:
            raise InputError(f"log_det: ridge={self.ridge!r} must be from {RIDGE} to 1")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        useful = Useful.of(evidence, self.quality, "log_det")
        points = useful.features.points()
        first = np.square(useful.quality) * (1 + squares(points) / self.ridge)
        volume = _Volume(points, useful.quality, self.ridge)
        picks, values = greedy(volume, first, allowance, useful.places)
        return useful.selection(evidence, allowance, picks, fixed(np.log(values * self.ridge), LOG_BITS))


class _Volume:
    """The variances given the picks, q_i² (1 + x_iᵀ A⁻¹ x_i), which are in units of δ."""

    def __init__(self, points: np.ndarray, weights: np.ndarray, ridge: float) -> None:
        self.points = points
        self.weights = weights
        self._ridge = ridge
        # |u| ≤ δ^−½ and Σ_j |u_jc| |u_jᵀ x| ≤ 1/δ: with so many bits in each, the sums stay within float64's 53
        self._bits = (51 - ceil(-log2(ridge))) // 2
        self._removed = np.empty((64, points.shape[1]))
        self._count = 0

    def __getitem__(self, some: slice | np.ndarray) -> _Volume:
        return _Volume(self.points[some].astype(np.float64), self.weights[some], self._ridge)

    def mark(self, j: int, value: float) -> np.ndarray:
        """u_j = A⁻¹ x_j / √(1 + x_jᵀ A⁻¹ x_j)."""
        x = self.points[j].astype(np.float64)
        before = self._removed[: self._count]
        left = x / self._ridge - fixed(before @ x, self._bits) @ before  # A⁻¹ x
        u = fixed(left * (self.weights[j] / sqrt(value)), self._bits)
        if self._count == len(self._removed):
            self._removed = np.concatenate([self._removed, np.empty_like(self._removed)])
        self._removed[self._count] = u
        self._count += 1
        return u

    def lower(self, values: np.ndarray, marks: list[np.ndarray]) -> None:
        if marks:
            for row in np.stack(marks) @ self.points.T:
                values -= np.square(self.weights * row)
