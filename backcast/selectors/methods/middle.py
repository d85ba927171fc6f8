"""Neither the easiest nor the hardest rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection


@dataclass(frozen=True)
class Middle:
    """The examples nearest to the median of a signal, by rank. O(n log n)::

        q_i = (rank_i − ½) / n,   gain_i = 1 − |2 q_i − 1|

    so that a budget of b % keeps the quantiles from 50 − b/2 to 50 + b/2 %. Equal signals are ranked by mean score,
    then by content id; of two as near to the median the one with the higher mean score comes first, then by content id.
    A pick's gain is 1 at the median and falls to 0 at the ends.

    Args:
        of: the name of one of the evidence's signals, such as ``"perplexity"``; the mean score by default.

    Source: Marion et al., "When less is more: investigating data pruning for pretraining LLMs at scale" (2023, arXiv
    2309.04564), whose middle subset of the perplexities is this one.
    """

    of: str | None = None

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        # distances in whole numbers, so that both sides of the median tie
        distance = np.abs(2 * ranks(evidence, self.of) + 1 - len(evidence))
        chosen = allowance.first(evidence.best_first(-distance))
        return Selection(evidence, chosen, 1 - distance[chosen] / len(evidence))


def ranks(evidence: Evidence, of: str | None) -> np.ndarray:
    """(n,) each example's place from 0 in the rising order of a signal, or of the mean score.

    Raises:
        InputError: there is no such signal, or there are no scores.
    """
    if of is None:
        evidence.need_scores("middle")
    elif of not in [*evidence.signals]:
        known = ", ".join(evidence.signals) or "none"
        raise InputError(f"middle: there is no signal {of!r}; there is {known}: give signals={{{of!r}: ...}}")
    falling = evidence.ranked(evidence.mean if of is None else evidence.signals[of])
    place = np.empty(len(evidence), dtype=np.int64)
    place[falling[::-1]] = np.arange(len(evidence))
    return place
