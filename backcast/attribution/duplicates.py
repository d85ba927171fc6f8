"""Near-duplicates by gradient."""

from __future__ import annotations

import faiss
import numpy as np

from backcast.attribution.store import SketchStore, unit_rows

#: Directions kept by the whitening, and rows that it is fitted on, at most.
COMPONENTS, FITTED_ROWS = 256, 8192
#: Share of the unit rows' variance below which a direction is noise of float32.
EPSILON = 1e-6


def near_duplicates(store: SketchStore, threshold: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of examples that teach the model the same thing: rows (p, 2) with i < j, and their (p,) cosines.

    Gradients of one class share a few strong directions, so that distinct examples reach a cosine of 0.98 and copies
    need not. The features are therefore centred and PCA-whitened to min(256, n/4) directions first: there, unrelated
    examples are near-orthogonal, and what is left alike is a copy. The search is a FAISS range search.

    Args:
        store: the rows to compare; below fifty, whitening keeps too few directions to tell chance from copies.
        threshold: the least whitened cosine of a pair.

    Source of the whitening: Jégou & Chum 2012, Negative evidences and co-occurences in image retrieval.
    """
    features = _whitened(store.features())
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    limits, cosines, neighbours = index.range_search(features, threshold)
    rows = np.repeat(np.arange(len(features)), np.diff(limits).astype(np.int64))
    once = rows < neighbours
    pairs = np.stack([rows[once], neighbours[once]], axis=1)
    order = np.lexsort(pairs.T[::-1])
    return pairs[order], cosines[once][order]


def _whitened(features: np.ndarray) -> np.ndarray:
    n, d = features.shape
    sample = np.sort(np.random.default_rng(0).permutation(n)[:FITTED_ROWS])
    whitening = faiss.PCAMatrix(d, max(1, min(COMPONENTS, len(sample) // 4, d)), -0.5)
    # A small model's sketches span fewer directions than they have numbers; the others must not be blown up.
    whitening.epsilon = EPSILON * len(sample)
    whitening.train(features[sample])
    return unit_rows(whitening.apply(features))
