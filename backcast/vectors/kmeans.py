"""K-means in exact arithmetic: the same clusters on any machine and any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from backcast.errors import InputError
from backcast.progress import progress
from backcast.vectors.features import BLOCK, Features
from backcast.vectors.fixed import POINT_BITS, fixed

#: Rounds of Lloyd's algorithm, at most.
ROUNDS = 20
#: Rows for each centroid that the rounds see, and numbers in these rows at least.
PER_CENTROID, NUMBERS = 64, 2**25
#: Rows that the first centroids are drawn from, or four for each.
SEEDING_ROWS = 2**13


@dataclass(frozen=True)
class Clusters:
    """k clusters of n rows.

    Attributes:
        centroids: (k, d) float32, the means of the unit rows, in multiples of 2⁻¹¹.
        labels: (n,) int32, the cluster of each row, whose centroid is the nearest; the lower one of two as near.
        cosines: (n,) float32, each row's with its centroid.
    """

    centroids: np.ndarray
    labels: np.ndarray
    cosines: np.ndarray


def kmeans(features: Features, k: int, seed: int = 0) -> Clusters:
    """Lloyd's k-means of the unit rows from k-means++ seeds, on a sample, with all rows assigned at the end.

    Rows and centroids are rounded to 2⁻¹¹ (`Features.points`). Then 2⟨x, c⟩ − ‖c‖², which the nearest centroid has most
    of, is a multiple of 2⁻²² below 4 and exact in float32, and a mean's sum is exact in float64: no order of sums, and
    so no BLAS, thread count or machine, changes a label. Each empty cluster takes the row that is farthest from its
    centroid. Time O(k d (n + 20·s)) for samples of s = max(64 k, 2²⁵/d) rows; memory O((s + k) d).

    Args:
        features: n rows.
        k: clusters, 1 to n. Of fewer distinct rows than k, some clusters stay empty.
        seed: of the sample and of the first centroids.

    Raises:
        InputError: k is out of range.

    Source: Lloyd 1982, Least squares quantization in PCM; Arthur & Vassilvitskii 2007, k-means++.
    """
    n, d = features.shape
    if not 1 <= k <= n:
        raise InputError(f"{k} clusters of {n} rows cannot be made; choose 1 to {n}")
    sample = features.points(features.sample(sample_size(k, d), seed))
    centroids = _seeds(sample[:: max(1, len(sample) // max(4 * k, SEEDING_ROWS))], k, seed)
    with progress(f"{k} clusters", ROUNDS) as done:
        for _ in range(ROUNDS):
            before, centroids = centroids, _means(sample, centroids)
            done(1)
            if np.array_equal(before, centroids):
                break
    return assign(features, centroids)


def sample_size(k: int, d: int) -> int:
    """How many rows of d numbers `kmeans` looks at in its rounds, if there are so many."""
    return max(PER_CENTROID * k, NUMBERS // d)


def assign(features: Features, centroids: np.ndarray) -> Clusters:
    """The clusters of n rows around (k, d) centroids that are in multiples of 2⁻¹¹. O(n k d), read in order."""
    n = len(features)
    labels, cosines = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.float32)
    norms = np.linalg.norm(centroids.astype(np.float64), axis=1)
    with progress("assigning rows", n) as done:
        for place, block in features.blocks():
            points = fixed(block, POINT_BITS)
            labels[place], scores = nearest(points, centroids)
            products = (scores + np.square(norms)[labels[place]]) / 2
            lengths = norms[labels[place]] * np.sqrt(np.square(points).sum(axis=1, dtype=np.float64))
            cosines[place] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
            done(len(block))
    return Clusters(centroids, labels, cosines)


def nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (r,) places of the nearest centroids, the lower of two as near, and the (r,) 2⟨x, c⟩ − ‖c‖² of these."""
    scores = points @ (2 * centroids).T
    scores -= np.square(centroids).sum(axis=1)
    labels = scores.argmax(axis=1)
    return labels, np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]


def _means(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The means of the points that are nearest to each centroid."""
    k = len(centroids)
    sums, counts, scores = np.zeros(centroids.shape), np.zeros(k), []
    for block in _blocks(points):
        labels, score = nearest(block, centroids)
        members = csr_array((np.ones(len(block)), (labels, np.arange(len(block)))), shape=(k, len(block)))
        sums += members @ block.astype(np.float64)
        counts += np.bincount(labels, minlength=k)
        scores.append(score - np.square(block).sum(axis=1))  # minus the squared distance
    empty = np.flatnonzero(counts == 0)
    means = fixed((sums / np.maximum(counts, 1)[:, None]).astype(np.float32), POINT_BITS)
    means[empty] = points[np.argsort(np.concatenate(scores), kind="stable")[: len(empty)]]
    return means


def _seeds(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(k, d) of the points, each drawn with a probability proportional to its squared distance from those before it."""
    lengths = np.square(points).sum(axis=1)
    far = np.ones(len(points), dtype=np.int64)
    chosen = []
    for draw in np.random.PCG64(seed).random_raw(k).tolist():
        mass = np.cumsum(far)
        at = (
            int(np.searchsorted(mass, draw % int(mass[-1]), side="right")) if mass[-1] else draw % len(points)
        )
        chosen.append(at)
        squares = lengths + lengths[at] - 2 * (points @ points[at])
        squares = np.ldexp(squares, 2 * POINT_BITS).astype(np.int64)
        far = np.minimum(far, squares) if len(chosen) > 1 else squares
    return points[chosen]


def _blocks(points: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(points), BLOCK):
        yield points[start : start + BLOCK]
