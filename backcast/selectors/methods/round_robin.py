"""Every target served in its turn."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import numpy as np

from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection


@dataclass(frozen=True)
class RoundRobin:
    """The targets take turns, in their order, each taking its best example that is not yet taken. O(m n log
    n).

    Ties by mean score, then by content id. A pick's gain is its score for the target that took it. With fewer
    picks than targets only the first targets are served: group the targets then.

    Source: the per-task turns of Xia et al., "LESS" (2024) and Ivison et al., "Large-scale data selection for
    instruction tuning" (2025), here over single targets.
    """

    def select(self, evidence: Evidence, budget: int, rng: np.random.Generator) -> Selection:
        scores = evidence.need_scores("round_robin")
        preferences = [iter(evidence.ranked(column)) for column in scores.T]
        taken = np.zeros(len(evidence), dtype=bool)
        chosen: list[int] = []
        gains: list[float] = []
        for target in cycle(range(len(preferences))):
            if len(chosen) == budget:
                break
            pick = next(i for i in preferences[target] if not taken[i])
            taken[pick] = True
            chosen.append(pick)
            gains.append(scores[pick, target])
        return Selection(evidence, np.asarray(chosen), np.asarray(gains, dtype=np.float64))
