"""One example of each group of near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.evidence import Evidence
from backcast.vectors import near_duplicates, whitened


@dataclass(frozen=True)
class Dedup:
    """Keeps of each group of near-duplicates the member with the best mean score, then the smallest content id.

    Gradients of one class share a few strong directions, so that their plain cosines say little: of 1,200 gradients of
    a digits classifier, all but three were one group at 0.98. So they are `whitened` first; in pools below fifty that
    keeps too few directions to tell chance from copies.

    Args:
        threshold: the least cosine of two near-duplicates, above 0 and at most 1; see `near_duplicates`.
        whiten: whether to compare the features whitened; for embeddings, say no, and take a threshold of 0.98.
    """

    threshold: float = 0.9
    whiten: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"dedup: threshold={self.threshold!r} must be above 0 and at most 1")

    def drop(self, evidence: Evidence) -> dict[str, np.ndarray]:
        features = evidence.need_features("dedup")
        groups = near_duplicates(whitened(features) if self.whiten else features, self.threshold)
        order = evidence.ranked(evidence.mean)
        _, first = np.unique(groups[order], return_index=True)
        return {"near-duplicate": np.delete(np.arange(len(evidence)), order[first])}
