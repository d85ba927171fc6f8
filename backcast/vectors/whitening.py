"""Rows in coordinates in which no direction is stronger than another."""

from __future__ import annotations

import numpy as np

from backcast.vectors.features import Features, Positions
from backcast.vectors.fixed import POINT_BITS, fixed

#: Directions kept, and rows that the whitening is fitted on, at most.
COMPONENTS, FITTED_ROWS = 256, 8192
#: Share of the unit rows' variance below which a direction is noise of float32.
EPSILON = 1e-6
#: Fraction bits of the whitening's numbers, the largest of which is one.
BITS = 26


def whitened(features: Features) -> Features:
    """The rows, centred and whitened to their min(256, n/4) strongest directions: W (x − μ), W = Σ_c v_c v_cᵀ / √λ_c.

    Gradients of one class share a few strong directions, so that distinct examples reach a cosine of 0.98 and copies
    need not. Whitened, unrelated rows are near-orthogonal and what is left alike is a copy. Fitted on up to 8,192 rows;
    below about fifty, too few directions are kept to tell chance from copies.

    W is rounded to multiples of 2⁻²⁶ of its largest number and meets points of 2⁻¹¹, so that the products are exact;
    being symmetric, it does not depend on which eigenvectors were found of equal eigenvalues. Time O(n d²).

    Source: Jégou & Chum 2012, Negative evidences and co-occurences in image retrieval.
    """
    sample = features.points(features.sample(FITTED_ROWS, seed=0)).astype(np.float64)
    mean = fixed(sample.mean(axis=0), BITS)
    variances, directions = _strongest(sample - mean, max(1, min(COMPONENTS, len(sample) // 4)))
    turn = (directions / np.sqrt(variances + EPSILON)) @ directions.T
    return Features.of(_Whitened(features, mean, fixed(turn / (np.abs(turn).max() or 1), BITS)))


def _strongest(centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(c,) variances and (d, c) directions of the most of it, by the smaller of the two products of the rows."""
    n, d = centred.shape
    small = centred.T @ centred if d <= n else centred @ centred.T
    variances, vectors = np.linalg.eigh(small / n)
    kept = slice(-min(count, len(small)), None)
    variances, vectors = np.maximum(variances[kept], 0), vectors[:, kept]
    if d > n:
        vectors = centred.T @ vectors / np.sqrt(np.maximum(n * variances, EPSILON))
    return variances, vectors


class _Whitened:
    """Features, whitened as they are read."""

    def __init__(self, features: Features, mean: np.ndarray, turn: np.ndarray) -> None:
        self._features = features
        self._offset = fixed(mean @ turn, BITS)
        self._turn = turn
        self.shape = features.shape

    def read(self, positions: Positions) -> np.ndarray:
        return fixed(self._features[positions], POINT_BITS).astype(np.float64) @ self._turn - self._offset
