"""The rows that help some group of targets most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection


@dataclass(frozen=True)
class Less:
    """The examples with the highest score for the group of targets that each serves best. O(n m + k log k)::

        score_i = max_g (1/|g|) Σ_{t∈g} s_it

    for the groups g of targets, whatever their sizes and weights: a maximum has no use for these. Ties by mean score,
    then by content id. A pick's gain is its score.

    The groups' scores are compared as they are, so that a group whose scores are spread wider takes more of the budget;
    where that is not wanted, let the groups take turns (`RoundRobin`).

    Source: Xia et al., "LESS: Selecting influential data for targeted instruction tuning" (2024), §4.2, whose scores
    are those of the attribution method of the same name.
    """

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        evidence.need_scores("less")
        chosen = allowance.first(evidence.best_first(evidence.best))
        return Selection(evidence, chosen, evidence.best[chosen])
