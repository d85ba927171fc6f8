"""A FAISS index over a store: the nearest training examples by gradient."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from backcast.attribution.store import SketchStore
from backcast.errors import InputError

#: Rows past which an exact scan gives way to an inverted file of scalar-quantised rows.
EXACT_ROWS = 20_000


class GradientIndex:
    """Cosine similarity of gradients, averaged over checkpoints: inner products of `SketchStore.features`.

    Normalisation happens there, once, for the indexed rows and the queries alike, and nowhere in the index.
    Up to `EXACT_ROWS` rows the search is exact. Past that: ``IVF,SQ8`` with lists of about 4√n, a third of them
    searched, trained on a seeded sample.

    Args:
        store: the rows to index.
        exact: force the exact or the approximate index; by default the store's size decides.
    """

    def __init__(self, store: SketchStore, exact: bool | None = None) -> None:
        self.store = store
        features = store.features()
        n, d = features.shape
        self.exact = n <= EXACT_ROWS if exact is None else exact
        self.index = faiss.IndexFlatIP(d) if self.exact else _inverted_file(features)
        self.index.add(features)

    def search(self, queries: np.ndarray | SketchStore, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """(q, k) cosines, falling, and the (q, k) rows of the store that have them.

        The approximate index gives row -1 where the lists it looks at hold fewer than k rows.

        Args:
            queries: (q, C·k) rows as `SketchStore.features` gives them, or a store of the same spec and checkpoints.

        Raises:
            InputError: a store that does not compare with the indexed one.
        """
        return self.index.search(self._rows(queries), min(k, len(self.store)))

    def _rows(self, queries: np.ndarray | SketchStore) -> np.ndarray:
        if isinstance(queries, np.ndarray):
            return np.ascontiguousarray(queries, dtype=np.float32)
        if queries.spec != self.store.spec or queries.checkpoints != self.store.checkpoints:
            raise InputError(
                f"{queries.path}: of another sketch spec or model than {self.store.path}; "
                f"collect the queries with '--like {self.store.path}' and the same model"
            )
        return queries.features()


def _inverted_file(features: np.ndarray) -> faiss.Index:
    n, d = features.shape
    lists = max(1, min(int(4 * np.sqrt(n)), n // 39))
    index: Any = faiss.index_factory(d, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 0
    index.nprobe = max(1, lists // 3)
    sample = np.random.default_rng(0).permutation(n)[: 64 * lists]
    index.train(features[np.sort(sample)])
    return index
