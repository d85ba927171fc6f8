"""Only rows within a window of a signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.evidence import Evidence
from backcast.selectors.methods.middle import ranks


@dataclass(frozen=True)
class Window:
    """Drops the examples outside a window of the quantiles q_i = (rank_i − ½) / n of a signal: q_i < low or q_i > high.
    O(n log n).

    Equal signals are ranked by mean score, then by content id. Source: that of the selector `Middle`.

    Args:
        low, high: the window's ends, 0 ≤ low < high ≤ 1.
        of: the name of one of the evidence's signals, such as ``"perplexity"``; the mean score by default.
    """

    low: float = 0.25
    high: float = 0.75
    of: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"middle: low={self.low!r}, high={self.high!r} must be 0 ≤ low < high ≤ 1")

    def drop(self, evidence: Evidence) -> dict[str, np.ndarray]:
        quantile = (ranks(evidence, self.of) + 0.5) / len(evidence)
        return {
            "below the window": np.flatnonzero(quantile < self.low),
            "above the window": np.flatnonzero(quantile > self.high),
        }
