"""Every target served in its turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection
from backcast.selectors.turns import weighted_turns


@dataclass(frozen=True)
class RoundRobin:
    """The groups of targets take turns, in their order and by their weights (see `weighted_turns`), each taking its
    best example that is not yet taken. O(G n + k log n) for G groups.

    Ties by mean score, then by content id. A pick's gain is its score for the group that took it. With fewer
    picks than groups only the first groups are served: make larger groups then.

    Source: the per-task turns of Xia et al., "LESS" (2024) and Ivison et al., "Large-scale data selection for
    instruction tuning" (2025).
    """

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        evidence.need_scores("round_robin")
        scores = evidence.by_group
        preferences = [evidence.best_first(column) for column in scores.T]
        waiting = np.ones(len(evidence), dtype=bool)
        chosen: list[int] = []
        gains: list[float] = []
        for group in weighted_turns(evidence.group_weights.tolist()):
            pick = next((i for i in preferences[group] if waiting[i] and allowance.fits(i)), None)
            if pick is None:  # what this group passed over is taken or fits no more, and so is all the rest
                break
            waiting[pick] = False
            allowance.take(pick)
            chosen.append(pick)
            gains.append(scores[pick, group])
        return Selection(evidence, np.asarray(chosen, dtype=np.int64), np.asarray(gains, dtype=np.float64))
