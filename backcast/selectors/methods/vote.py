"""The rows that most of the targets want."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence, columns
from backcast.selectors.selection import Selection
from backcast.vectors import fixed


@dataclass(frozen=True)
class Vote:
    """The examples with the most votes of the groups of targets. O(n m + k log k) time, O(n) memory beside the scores::

        votes_i = Σ_g w_g [s_ig ≥ τ_g],   τ_g = the ⌈n (1 − percentile/100)⌉-th highest s_·g

    with the groups' weights w_g, which add up to one. Ties, of which there are many, by mean score, then by content id.
    A pick's gain is its share of the votes.

    A vote knows no scale: a group with large scores has no more say than one with small ones, and one huge score is
    worth no more than a good one.

    Args:
        percentile: the percentile of its scores above which a group votes for an example, from 0 up to below 100. The
            paper's is 80 for a budget of 20 %.

    Source: Wu et al., "ICONS: Influence consensus for vision-language data selection" (2025, arXiv 2501.00654), the
    generalist stage, without weights there.
    """

    percentile: float = 80.0

    def __post_init__(self) -> None:
        if not 0 <= self.percentile < 100:
            raise InputError(f"vote: percentile={self.percentile!r} must be from 0 up to below 100")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        evidence.need_scores("vote")
        votes = self._votes(evidence)
        chosen = allowance.first(evidence.best_first(votes))
        return Selection(evidence, chosen, votes[chosen])

    def _votes(self, evidence: Evidence) -> np.ndarray:
        """(n,) float64, in multiples of 2⁻⁴⁰, so that equal sums of different weights are equal."""
        n = len(evidence)
        voters = min(n, max(1, int(np.ceil(round(n * (1 - self.percentile / 100), 6)))))
        votes = np.zeros(n)
        for weight, scores in zip(evidence.group_weights, columns(evidence.by_group), strict=True):
            threshold = np.partition(scores, n - voters)[n - voters]
            votes += weight * (scores >= threshold)
        return fixed(votes, 40)
