"""What the parts of a score by modality say of an example: which modality drives its score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backcast.errors import InputError

#: The modalities that a score is split between.
MODALITIES = ("image", "text")

#: The classes of `driven`, in the order in which they are told.
CLASSES = (*MODALITIES, "mixed")


def shares(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """modality → (n,) |part| / (|image| + |text|): 0 where neither contributes, NaN where there is no split.

    Args:
        parts: modality → (n,) signed parts; NaN in a row without a split.
    """
    sizes = {modality: np.abs(np.asarray(parts[modality], dtype=np.float64)) for modality in MODALITIES}
    total = sum(sizes.values(), start=np.float64(0))
    return {m: np.divide(size, total, out=np.zeros_like(size), where=total != 0) for m, size in sizes.items()}


def driven(parts: Mapping[str, np.ndarray], margin: float = 2 / 3) -> np.ndarray:
    """(n,) ``"image"``, ``"text"`` or ``"mixed"``: the modality whose share of the score is at least ``margin``.

    Mixed are the rows in which neither reaches it, among them those where both parts are zero and those without a
    split. A row of image-text data that has no image has an image part of zero, and so is text-driven.

    Args:
        parts: modality → (n,) signed parts; NaN in a row without a split.
        margin: the least share, above 1/2 and at most 1.

    Raises:
        InputError: the margin is out of range.
    """
    if not 0.5 < margin <= 1:
        raise InputError(f"driven: margin={margin!r} must be above 1/2 and at most 1")
    leads = [share >= margin for share in shares(parts).values()]
    return np.select(leads, MODALITIES, default="mixed")
