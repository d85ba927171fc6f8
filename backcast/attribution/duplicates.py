"""Near-duplicates by gradient."""

from __future__ import annotations

import numpy as np

from backcast.attribution.store import SketchStore
from backcast.vectors import Features, near_pairs, whitened


def near_duplicates(store: SketchStore, threshold: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of examples that teach the model the same thing: rows (p, 2) with i < j, and their (p,) cosines.

    Gradients of one class share a few strong directions, so that distinct examples reach a cosine of 0.98 and copies
    need not. The features are therefore centred and PCA-whitened to min(256, n/4) directions first: there, unrelated
    examples are near-orthogonal, and what is left alike is a copy. Which pairs are looked at, `near_pairs` tells.

    Args:
        store: the rows to compare; below fifty, whitening keeps too few directions to tell chance from copies.
        threshold: the least whitened cosine of a pair.
    """
    found = list(near_pairs(whitened(Features.of(store)), threshold))
    left, right, cosines = (np.concatenate(ends) for ends in zip(*found, strict=True))
    _, once = np.unique(left * len(store) + right, return_index=True)  # sorted by left, then right
    return np.stack([left, right], axis=1)[once], cosines[once]
