"""Only rows whose image is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.selectors.evidence import Evidence
from backcast.selectors.modality import shares


@dataclass(frozen=True)
class ImageNeeded:
    """Drops the rows whose image contributes nothing: an image share |image| / (|image| + |text|) below ``threshold``.

    An image that changes no score, with its text or without it, has a Shapley part of exactly zero. So have a row
    without an image and a row whose parts are both zero: they go too. Rows without a split stay. O(n).

    Args:
        threshold: the least share of an image that is needed, above 0 and at most 1.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"image_needed: threshold={self.threshold!r} must be above 0 and at most 1")

    def drop(self, evidence: Evidence) -> dict[str, np.ndarray]:
        share = shares(evidence.need_parts("image_needed"))["image"]
        return {"image contributes nothing": np.flatnonzero(share < self.threshold)}
