"""As many rows driven by their image as by their text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.modality import CLASSES, driven
from backcast.selectors.selection import Selection
from backcast.selectors.turns import turns


@dataclass(frozen=True)
class ModalityBalance:
    """Image-driven, text-driven and mixed rows (see `driven`) take turns, in this order, each class giving the row with
    the highest mean score that it has left; a class that has none left is passed over. O(n m + n log n).

    Ties by content id. A pick's gain is its mean score. Rows without a split are mixed.
    """

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        evidence.need_scores("modality_balance")
        order = evidence.ranked(evidence.mean)
        classes = driven(evidence.need_parts("modality_balance"))[order]
        place = [CLASSES.index(name) for name in classes]
        chosen = allowance.first(order[np.lexsort((place, turns(classes)))])
        return Selection(evidence, chosen, evidence.mean[chosen])
