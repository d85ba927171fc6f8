"""The graph of each row's nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryFile

import numpy as np
from scipy.sparse import csr_array

from backcast.errors import InputError
from backcast.progress import progress
from backcast.vectors.features import Features
from backcast.vectors.fixed import POINT_BITS
from backcast.vectors.index import Index
from backcast.vectors.shelf import Shelf

#: Rows up to which every pair is looked at.
EXACT_ROWS = 200_000
#: Rows whose neighbours are looked for together, and columns of a block of their cosines.
ROWS, COLUMNS = 2048, 8192
#: The place of each part in the number that candidates are sorted by; see `_keys`.
ROW_PLACE, COSINE_PLACE = 1 << 45, 1 << 20

Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def neighbour_graph(features: Features, k: int) -> csr_array:
    """(n, n) float32 with, in each row, the k largest cosines, of which negative ones are 0 and one is the row's own.

    Up to 200,000 rows all pairs are looked at: O(n² d) time and O(n k) memory; a copy of the rows, two bytes a number,
    lies in a temporary file meanwhile. Rows are rounded to 2⁻¹¹, which makes the cosines exact (`Features.points`), and
    ties go to the lower position: the graph is the same on any machine. Past that an `Index` finds nearly all of the
    neighbours.

    Args:
        features: n rows.
        k: entries of a row, 1 to n.

    Raises:
        InputError: k is out of range.
    """
    n = len(features)
    if not 1 <= k <= n:
        raise InputError(f"a graph of {n} rows cannot have {k} neighbours of each; choose 1 to {n}")
    rows, columns, cosines = [], [], []
    with progress("neighbours", n) as done:
        for row, near, cosine in _exact(features, k) if n <= EXACT_ROWS else _indexed(features, k):
            rows.append(row.astype(np.int32))
            columns.append(near.astype(np.int32))
            cosines.append(np.maximum(cosine, 0))
            done(int(row[-1] - row[0]) + 1)
    ends = np.concatenate(rows), np.concatenate(columns)
    return csr_array((np.concatenate(cosines), ends), shape=(n, n))


def _exact(features: Features, k: int) -> Iterator[Found]:
    """Block by block, k entries a row: rows, columns and cosines, (r k,) each."""
    n = len(features)
    with TemporaryFile() as file:
        points = Shelf(features, np.arange(n), file)
        for start in range(0, n, ROWS):
            block = points[start : start + ROWS]
            best = np.empty((len(block), 0), dtype=np.int64)
            for first in range(0, n, max(COLUMNS, k)):
                products = block @ points[first : first + max(COLUMNS, k)].T
                own = np.arange(max(start, first), min(start + len(block), first + products.shape[1]))
                products[own - start, own - first] = 2  # above all others
                best = _best(best, products, first, k)
            rows = np.repeat(np.arange(len(block)), k)
            columns = best.ravel() % COSINE_PLACE
            cosines = _cosines(best.ravel())
            cosines[columns == start + rows] = points.squares[start : start + len(block)]
            yield start + rows, columns, cosines


def _best(best: np.ndarray, products: np.ndarray, first: int, k: int) -> np.ndarray:
    """(r, k) keys, rising, of the best of those before and of the products with the columns from ``first`` on."""
    if best.shape[1]:
        worst = _cosines(best[:, -1])
        rows, columns = np.nonzero(products > worst[:, None])
    else:
        worst = np.partition(products, -k, axis=1)[:, -k]
        rows, columns = np.nonzero(products >= worst[:, None])
    keys = np.concatenate([best.ravel(), _keys(rows, products[rows, columns], first + columns)])
    keys.sort()
    starts = np.searchsorted(keys, np.arange(len(products)) * ROW_PLACE)
    return keys[starts[:, None] + np.arange(k)]


def _keys(rows: np.ndarray, cosines: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whole numbers that sort by row, then from the highest cosine, a multiple of 2⁻²² in (−2, 2], then by column."""
    falling = (2 - cosines.astype(np.float64)) * 2 ** (2 * POINT_BITS)
    return rows * ROW_PLACE + falling.astype(np.int64) * COSINE_PLACE + columns


def _cosines(keys: np.ndarray) -> np.ndarray:
    return (2 - (keys % ROW_PLACE // COSINE_PLACE) / 2 ** (2 * POINT_BITS)).astype(np.float32)


def _indexed(features: Features, k: int) -> Iterator[Found]:
    """As `_exact`, by an index, which may find fewer than k."""
    index = Index.of(features)
    for span, block in features.blocks():
        cosines, columns = index.search(block, k)
        rows = np.arange(span.start, span.stop)[:, None]
        columns[:, -1] = np.where((columns == rows).any(axis=1), columns[:, -1], rows[:, 0])
        cosines[columns == rows] = np.square(block).sum(axis=1)
        found = columns >= 0
        yield np.broadcast_to(rows, columns.shape)[found], columns[found], cosines[found]
