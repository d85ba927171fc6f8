"""Points in a file, for work that reads them again and again."""

from __future__ import annotations

from typing import IO

import numpy as np

from backcast.vectors.features import Features
from backcast.vectors.fixed import POINT_BITS, fixed


class Shelf:
    """The points of n rows, in halves, which hold multiples of 2⁻¹¹ up to 1 exactly.

    Args:
        features: n rows, read once, block by block.
        order: (n,) their positions in the order in which they are to lie.
        file: to fill with 2 n d bytes; mapped into memory.

    Attributes:
        squares: (n,) float32, the points' squared lengths, exact.
    """

    def __init__(self, features: Features, order: np.ndarray, file: IO[bytes]) -> None:
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        self._halves = np.memmap(file, np.float16, "w+", shape=features.shape)
        self.squares = np.empty(len(order), dtype=np.float32)
        for span, block in features.blocks():
            points = fixed(block, POINT_BITS)
            self._halves[place[span]] = points
            self.squares[place[span]] = np.square(points).sum(axis=1)

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        """(r, d) float32 points."""
        return self._halves[places].astype(np.float32)
