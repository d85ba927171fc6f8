"""The highest scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection


@dataclass(frozen=True)
class TopK:
    """The examples with the highest mean score over the groups of targets; ties by content id. O(n m + n log n).

    Blind to redundancy, and to targets that pull apart: an example that helps one target and hinders the
    others has a low mean. A pick's gain is its mean score.
    """

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        evidence.need_scores("top_k")
        chosen = allowance.first(evidence.ranked(evidence.mean))
        return Selection(evidence, chosen, evidence.mean[chosen])
