"""No rows that help nobody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.evidence import Evidence


@dataclass(frozen=True)
class Trim:
    """Drops the rows with the lowest scores for the group of targets that each serves best. O(n m + n log n).

    The best group and not the mean: a row that helps one group of targets and hinders the others has a low mean. What
    is left can be chosen from for its variety alone, ``trim(0.4) | random`` being the plainest way: scores tell spoilt
    rows from good ones better than they tell good ones apart.

    Ties by mean score, then by content id.

    Args:
        share: of the rows to drop, from 0 up to below 1.
    """

    share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise InputError(f"trim: share={self.share!r} must be from 0 up to below 1")

    def drop(self, evidence: Evidence) -> dict[str, np.ndarray]:
        evidence.need_scores("trim")
        order = evidence.ranked(evidence.best)
        return {"low score": np.sort(order[len(order) - int(self.share * len(order)) :])}
