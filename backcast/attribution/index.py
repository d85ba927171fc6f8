"""A FAISS index over a store: the nearest training examples by gradient."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from backcast.attribution.store import SketchStore
from backcast.errors import InputError
from backcast.vectors import Index

#: The file of an index, in the folder where it is kept; what it is stands beside it, as JSON.
FILE = "index.faiss"


class GradientIndex:
    """Cosine similarity of gradients, averaged over checkpoints: that of the rows of `SketchStore.features`.

    An index that is kept beside the store is opened, mapped into memory; without one it is built, and kept only if a
    ``path`` says where.

    Args:
        store: the rows to index.
        kind: of index, see `backcast.vectors.Index`; by default the kept one's, or what suits the size.
        path: the folder in which it is kept; by default the store's, if there is one.

    Raises:
        InputError: an index of another store, of another kind than asked, or damaged.
    """

    def __init__(self, store: SketchStore, kind: str | None = None, path: str | Path | None = None) -> None:
        self.store = store
        folder = Path(path or store.path)
        if (folder / FILE).with_suffix(".json").is_file():
            self.index = _kept(store, kind, folder / FILE)
        else:
            self.index = Index.of(store, kind=kind)
            if path:
                self.save(path)

    @property
    def kind(self) -> str:
        return self.index.kind

    def save(self, path: str | Path | None = None) -> None:
        """Keep the index in a folder, by default the store's: ``index.faiss`` and ``index.json``."""
        self.index.save(Path(path or self.store.path) / FILE, {"store": self.store.fingerprint})

    def search(self, queries: np.ndarray | SketchStore, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """(q, k) cosines, falling, and the (q, k) rows of the store that have them.

        An approximate index gives row -1 where the lists it looks at hold fewer than k rows.

        Args:
            queries: (q, C·k) rows as `SketchStore.features` gives them, or a store of the same spec and checkpoints.

        Raises:
            InputError: a store that does not compare with the indexed one, or rows of another length.
        """
        return self.index.search(self._rows(queries), k)

    def _rows(self, queries: np.ndarray | SketchStore) -> np.ndarray:
        if isinstance(queries, np.ndarray):
            return queries
        if queries.spec != self.store.spec or queries.checkpoints != self.store.checkpoints:
            raise InputError(
                f"{queries.path}: of another sketch spec or model than {self.store.path}; "
                f"collect the queries with '--like {self.store.path}' and the same model"
            )
        return queries.features()


class FollowedIndex:
    """An index that grows while a store is written, and is kept beside it at the end.

    Rows are added in the store's order, once they are there at every checkpoint, and the first of them are what the
    index is trained on. How many lists a search looks at is measured at the end, on a sample of all rows, so that rows
    in an order that is not random cost time and not recall.

    Args:
        store: whose rows to add, whether they are there already or still to be written.
    """

    def __init__(self, store: SketchStore) -> None:
        self.store = store
        self._index = Index(*store.shape)
        self._shard = 0
        self._waiting: list[np.ndarray] = []

    def follow(self, checkpoint: int) -> None:
        """Add what can be: to be called after each shard of a checkpoint."""
        if checkpoint == len(self.store.checkpoints) - 1:
            with suppress(InputError):  # the next one is not there yet, or damaged and to be written again
                self._add()

    def finish(self) -> None:
        """Add the rest of the store, now whole, and keep the index."""
        self._add()
        self._index.tune(self.store)
        self._index.save(self.store.path / FILE, {"store": self.store.fingerprint})

    def _add(self) -> None:
        for rows in self.store.header.shards()[self._shard :]:
            self._waiting.append(self.store.read(rows))
            self._shard += 1
            if (
                self._index.trained
                or sum(map(len, self._waiting)) >= self._index.wanted
                or rows.stop == len(self.store)
            ):
                waiting, self._waiting = np.concatenate(self._waiting), []
                self._index.train(waiting)
                self._index.add(waiting)


def _kept(store: SketchStore, kind: str | None, path: Path) -> Index:
    about = Index.described(path)
    if about.get("store") != store.fingerprint:
        raise InputError(
            f"{path}: the index of another store than {store.path}; delete it, and its index.json"
        )
    if kind not in (None, about["kind"]):
        raise InputError(
            f"{path}: of kind {about['kind']}, not {kind}; delete it, and its index.json, to build another"
        )
    return Index.open(path)
