"""One example of each group of near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from backcast.errors import InputError
from backcast.selectors.evidence import Evidence

#: Rows whose cosines with the pool are made at once.
BLOCK = 512

#: What float32 may take off a cosine: a copy of a row counts as one at threshold 1.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Dedup:
    """Keeps of each group of near-duplicates the member with the best mean score, then the smallest content
    id.

    Args:
        threshold: the least cosine of two near-duplicates, above 0 and at most 1; see `near_duplicates`.
    """

    threshold: float = 0.98

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"dedup: threshold={self.threshold!r} must be above 0 and at most 1")

    def drop(self, evidence: Evidence) -> dict[str, np.ndarray]:
        groups = near_duplicates(evidence.need_features("dedup")[:], self.threshold)
        order = evidence.ranked(evidence.mean)
        _, first = np.unique(groups[order], return_index=True)
        return {"near-duplicate": np.delete(np.arange(len(evidence)), order[first])}


def near_duplicates(features: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) for each row the first row of its group: the connected components of the pairs with cosine ≥
    ``threshold``.

    Exact, over all pairs: O(n² d) time, O(n) memory and a block of cosines. Two members of a group may be
    further apart than the threshold when others link them.

    Args:
        features: (n, d) float32, rows of unit norm; rows of zeros resemble nothing.
        threshold: the least cosine of a pair.
    """
    n = len(features)
    groups = np.arange(n)
    for start in range(0, n, BLOCK):
        cosines = features[start : start + BLOCK] @ features[start:].T
        left, right = np.nonzero(cosines >= threshold - ROUNDING)
        # what is grouped so far, as one edge a row, and the block's pairs: no list of all pairs is ever kept
        ends = (
            np.concatenate([np.arange(n), left + start]),
            np.concatenate([groups, right + start]),
        )
        pairs = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(n, n))
        _, labels = connected_components(pairs, directed=False)
        groups = np.unique(labels, return_index=True)[1][labels]
    return groups
