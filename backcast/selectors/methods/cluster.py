"""Some of every kind, and more of the kinds that help and vary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.greedy import check_quality, qualities
from backcast.selectors.selection import Selection
from backcast.vectors import Clusters, Features, fixed, kmeans
from backcast.vectors.kmeans import assign, sample_size

#: Which of its members a cluster gives first.
WITHIN = ("score", "nearest", "random")

#: Fraction bits of what clusters are weighed by: below what machines differ in.
BITS = 40


@dataclass(frozen=True)
class Cluster:
    """K-means clusters of the features, from which examples are taken in proportion to P_c ∝ exp(S_c / (τ D_c)).

    S_c is the cluster's *transferability*: the mean quality of its members (see `qualities`) over that of the best
    cluster, so that it says how well they transfer to the targets; without scores the mean cosine of its centroid with
    the others, as published, how well they transfer to the rest of the pool. D_c is its *density*, the Gaussian
    similarity exp(−‖x − y‖²) of its members at their mean squared distance, 2 (1 − ‖centroid‖²) for unit rows (the
    published one is the mean over all pairs, which is no less). So dense clusters, whose examples repeat each other,
    give less.

    The clusters take turns by D'Hondt: the r-th example of cluster c comes at r / P_c, and one that has given all is
    passed over. Each pick's cluster is told; gains are NaN, as nothing is maximised. Time that of `kmeans`, O(n d C),
    and O(n log n); memory O(n), beside a sample of the rows.

    Args:
        clusters: C; by default about √n.
        temperature: τ, above zero; the larger, the more alike are the shares.
        within: ``"score"`` gives a cluster's best-scored examples first, ``"nearest"`` those nearest to its centroid,
            ``"random"`` draws; by default score where there are scores, else nearest.
        quality: the power of the quality; 0 is as without scores.

    Source: Lee, Li, Wang, Hwang & Bansal 2024, Concept-skill transferability-based data selection for large
    vision-language models (COINCIDE), whose choice within a cluster minimises a discrepancy instead.
    """

    clusters: int | None = None
    temperature: float = 1.0
    within: str | None = None
    quality: float = 2.0

    def __post_init__(self) -> None:
        check_quality("cluster", self.quality)
        if self.within not in (None, *WITHIN):
            raise InputError(f"cluster: within={self.within!r} is unknown; give one of {', '.join(WITHIN)}")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"cluster: temperature={self.temperature!r} must be a number above zero")
        if self.clusters is not None and (not isinstance(self.clusters, int) or self.clusters < 1):
            raise InputError(f"cluster: clusters={self.clusters!r} must be a whole number from 1 up")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        features = evidence.need_features("cluster")
        by_id, n = evidence.by_id, len(evidence)
        count = min(n, self.clusters or max(1, round(n**0.5)))
        seed = int(rng.bit_generator.random_raw())
        # a sample that no shuffle changes, read at once; the pool is then gone through as it lies
        drawn = by_id[features.sample(sample_size(count, features.shape[1]), seed)]
        found = assign(features, kmeans(Features.of(features[drawn]), count, seed).centroids)
        quality = None
        if evidence.scores is not None and self.quality > 0:
            quality = qualities(evidence, self.quality)
        turn = np.empty(n)
        turn[by_id] = _places(found.labels[by_id], self._within(evidence, found, rng)) + 1
        weight = _transferability(found, quality) / (self.temperature * _density(found))
        keys = fixed(np.log(turn) - weight[found.labels], BITS)
        chosen = allowance.first(by_id[np.argsort(keys[by_id], kind="stable")])  # ties by content id
        clusters = found.labels.astype(np.int64)[chosen]
        return Selection(evidence, chosen, np.full(len(chosen), np.nan), clusters=clusters)

    def _within(self, evidence: Evidence, found: Clusters, rng: np.random.Generator) -> np.ndarray:
        """(n,) in the order of content ids: the smaller, the sooner its cluster gives it."""
        within = self.within or ("nearest" if evidence.scores is None else "score")
        if within == "score":
            places = np.empty(len(evidence), dtype=np.int64)
            places[evidence.ranked(evidence.best)] = np.arange(len(evidence))
            return places[evidence.by_id]
        return (
            -found.cosines[evidence.by_id]
            if within == "nearest"
            else rng.bit_generator.random_raw(len(evidence))
        )


def _transferability(found: Clusters, quality: np.ndarray | None) -> np.ndarray:
    """(C,) S."""
    count = len(found.centroids)
    if quality is not None:
        members = np.bincount(found.labels, minlength=count)
        means = np.bincount(found.labels, quality, minlength=count) / np.maximum(members, 1)
        return means / (means.max() or 1)
    points = Features.of(found.centroids).points().astype(np.float64)
    return (points @ points.sum(axis=0) - np.square(points).sum(axis=1)) / max(1, count - 1)


def _density(found: Clusters) -> np.ndarray:
    """(C,) D."""
    return np.exp(-2 * (1 - np.square(found.centroids.astype(np.float64)).sum(axis=1)))


def _places(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(n,) each row's place in its own cluster, by rising keys; the first of equals first."""
    order = np.lexsort((keys, labels))
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = np.arange(len(labels)) - starts[labels[order]]
    return places
