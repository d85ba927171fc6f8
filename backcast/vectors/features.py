"""Rows of numbers at unit length, read block by block from whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from backcast.errors import InputError
from backcast.vectors.fixed import POINT_BITS, fixed

#: Rows read and brought to unit length at once.
BLOCK = 4096

Positions = slice | np.ndarray


class Readable(Protocol):
    """Rows that can be read by position, such as a sketch store's."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def read(self, positions: Positions) -> np.ndarray:
        """(r, d) rows, in the order of the positions."""
        ...


class Features:
    """(n, d) float32 rows of unit length, so that inner products are cosines; rows of zeros stay zero.

    They are made as they are read and never held whole, so that a memory map or a store of any size will do. Norms are
    taken in float64, so that they come out alike on every machine.

    Args:
        source: an (n, d) array or memory map of numbers, or what reads like one (`Readable`).
        positions: those of its rows to be seen, in order; all of them by default.

    Raises:
        InputError: the source is not a matrix; on reading, a row that holds a NaN or an infinity.
    """

    def __init__(self, source: np.ndarray | Readable, positions: np.ndarray | None = None) -> None:
        if isinstance(source, np.ndarray):
            _check_matrix(source)
        self._source = source
        self._positions = positions

    @classmethod
    def of(cls, source: Features | np.ndarray | Readable) -> Features:
        """The features in an array, a memory map or a store; features themselves."""
        return source if isinstance(source, Features) else cls(source)

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self._source.shape
        return (n if self._positions is None else len(self._positions)), d

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: Positions) -> np.ndarray:
        """(r, d) float32 unit rows, in the order of the positions. O(r d)."""
        where = positions if self._positions is None else self._positions[positions]
        values = self._source[where] if isinstance(self._source, np.ndarray) else self._source.read(where)
        unit = np.empty(values.shape, dtype=np.float32)
        for start in range(0, len(values), BLOCK):
            block = slice(start, start + BLOCK)
            wide = values[block].astype(np.float64)
            norms = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
            broken = np.flatnonzero(~np.isfinite(norms))
            if len(broken):
                row = np.arange(self._source.shape[0])[where][start + broken[0]]
                raise InputError(
                    f"features: row {row} holds a NaN or an infinity; leave the example out, or mend what made it"
                )
            np.divide(wide, np.where(norms > 0, norms, 1), out=unit[block], casting="same_kind")
        return unit

    def blocks(self, rows: int = BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
        """(positions, their (r, d) unit rows), in order."""
        n = len(self)
        for start in range(0, n, rows):
            block = slice(start, min(start + rows, n))
            yield block, self[block]

    def take(self, positions: Positions) -> Features:
        """Some of the rows, in the order of the positions; nothing is read yet."""
        where = np.arange(len(self))[positions] if self._positions is None else self._positions[positions]
        return Features(self._source, where)

    def sample(self, size: int, seed: int) -> np.ndarray:
        """(min(n, size),) positions drawn without replacement, rising; the same with any numpy."""
        return sample(len(self), size, seed)

    def points(self, positions: Positions | None = None) -> np.ndarray:
        """(r, d) float32 unit rows rounded to multiples of 2⁻¹¹, whose inner products are exact.

        Products of such numbers are multiples of 2⁻²². By Cauchy and Schwarz no sum over some of two rows' products is
        above (1 + √d·2⁻¹²)², which is below 4 for d < 2²⁴, so that float32's 24 bits hold every one of them: the inner
        product is the same whatever the order of the sum, the number of threads or the machine. A cosine moves by
        about 2·10⁻⁴; by at most 2√d·2⁻¹², where rounding moves all of a row's numbers the same way.
        """
        return fixed(self[slice(None) if positions is None else positions], POINT_BITS)


def sample(n: int, size: int, seed: int) -> np.ndarray:
    """(min(n, size),) of n positions drawn without replacement, rising; the same with any numpy."""
    keys = np.random.PCG64(seed).random_raw(n)
    return np.sort(np.argsort(keys, kind="stable")[:size])


def _check_matrix(values: np.ndarray) -> None:
    numbers = np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)
    if values.ndim != 2 or not values.shape[1] or not numbers:
        raise InputError(
            f"features of shape {values.shape} and type {values.dtype} are not an (n, d) array of numbers; "
            "give one row of numbers for each example"
        )
