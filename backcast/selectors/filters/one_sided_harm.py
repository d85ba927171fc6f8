"""No rows that one spoilt modality makes harmful."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.selectors.evidence import Evidence
from backcast.selectors.modality import MODALITIES


@dataclass(frozen=True)
class OneSidedHarm:
    """Drops the rows that are harmful through one modality only: one part is negative, the other is not, and their sum
    is negative. The reason is the harmful modality.

    The sum of the parts is the score less that of the baseline. Rows harmful through both modalities stay, for the
    selector to judge by their score; so do rows without a split. O(n).
    """

    def drop(self, evidence: Evidence) -> dict[str, np.ndarray]:
        parts = evidence.need_parts("one_sided_harm")
        negative = {modality: parts[modality] < 0 for modality in MODALITIES}
        harmful = (negative["image"] != negative["text"]) & (parts["image"] + parts["text"] < 0)
        return {modality: np.flatnonzero(harmful & negative[modality]) for modality in MODALITIES}
