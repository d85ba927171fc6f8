"""Near-duplicates: the pairs of rows that point the same way, and the groups that they form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from backcast.progress import progress
from backcast.vectors.features import Features
from backcast.vectors.fixed import POINT_BITS, fixed
from backcast.vectors.kmeans import kmeans
from backcast.vectors.shelf import Shelf

#: Rows up to which every pair is looked at.
EXACT_ROWS = 50_000
#: Other cells that a row is compared with, at most.
VISITS = 4
#: What float32 may take off a cosine: a copy of a row counts as one at threshold 1.
ROUNDING = 1e-6
#: Pairs that wait to be joined into groups.
WAITING = 2**22
#: Columns of a block of cosines, whose rows are a quarter of it.
COLUMNS = 4096

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def near_duplicates(features: Features, threshold: float) -> np.ndarray:
    """(n,) for each row the first row of its group: the connected components of the `near_pairs`.

    Two members of a group may be further apart than the threshold when others link them.

    Args:
        features: n rows; rows of zeros resemble nothing.
        threshold: the least cosine of a pair, above 0 and at most 1.
    """
    groups = np.arange(len(features))
    waiting: list[np.ndarray] = []
    for left, right, _ in near_pairs(features, threshold):
        waiting.append(np.stack([left, right]))
        if sum(ends.shape[1] for ends in waiting) >= WAITING:
            groups, waiting = _joined(groups, waiting), []
    return _joined(groups, waiting)


def near_pairs(features: Features, threshold: float) -> Iterator[Pairs]:
    """Pairs of rows with a cosine of at least ``threshold``, block by block: positions i < j and cosines, (p,) each.

    Rows are rounded to 2⁻¹¹ (`Features.points`) and their cosines are those of what is left, so that the same pairs are
    found on any machine; rounding moves a cosine by about 2·10⁻⁴, that of two equal rows not at all.

    Up to 50,000 rows all pairs are looked at: O(n² d). Past that, rows are put into √(2n) cells by k-means and compared
    within their cell, and with those of other cells whose border they are near. A border that parts a pair at distance
    r = √(2 − 2·threshold) is within r/2 of one of the two rows, so a row compared with every cell whose border is that
    near would miss none. A row visits the four nearest of these cells at most, where pairs can be lost: of gradient
    sketches of docstrings, with noisy copies among them, all pairs at 0.9 are found and 99.95 % of those at 0.8. Where
    most rows are alike, so that a cell's neighbours are too many to visit, half of the pairs may be missed, though not
    the group that they form. The same pair may come twice.
    O(n^1.5 d) where the cells are of like size.

    A copy of the rows, two bytes a number, lies in a temporary file meanwhile.

    Args:
        features: n rows; rows of zeros resemble nothing.
        threshold: the least cosine of a pair, above 0 and at most 1.
    """
    cells = _one_cell(len(features)) if len(features) <= EXACT_ROWS else _cells(features, threshold)
    with TemporaryFile() as file, progress("comparing rows", len(features)) as done:
        rows = Shelf(features, cells.order, file)
        for cell in range(len(cells.starts) - 1):
            members = np.arange(cells.starts[cell], cells.starts[cell + 1])
            visitors = cells.visitors[cells.arrivals[cell] : cells.arrivals[cell + 1]]
            for left, right, cosines in _within(rows, members, visitors, threshold - ROUNDING):
                ends = np.sort([cells.order[left], cells.order[right]], axis=0)
                yield ends[0], ends[1], cosines
            done(len(members))


@dataclass(frozen=True)
class _Cells:
    """Which rows are compared: each cell's own with each other and with the visitors.

    Attributes:
        order: (n,) positions, cell by cell; the other rows here are places in it.
        starts: (C + 1,) where each cell starts in it.
        visitors: cell by cell, rows of other cells.
        arrivals: (C + 1,) where each cell starts in that.
    """

    order: np.ndarray
    starts: np.ndarray
    visitors: np.ndarray
    arrivals: np.ndarray


def _one_cell(n: int) -> _Cells:
    return _Cells(np.arange(n), np.array([0, n]), np.empty(0, dtype=np.int64), np.zeros(2, dtype=np.int64))


def _cells(features: Features, threshold: float) -> _Cells:
    """Cells by k-means, and which rows visit which others; see `near_pairs`."""
    n = len(features)
    count = int(np.sqrt(2 * n))
    clusters = kmeans(features, count)
    centroids, labels = clusters.centroids, clusters.labels
    squares = np.square(centroids).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * centroids @ centroids.T, 0))
    order = np.argsort(labels, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    visitors, visited = [], []
    for span, block in features.blocks():
        # 2⟨x, c⟩ − ‖c‖² falls by twice the distance to the border times that between the centroids
        scores = fixed(block, POINT_BITS) @ (2 * centroids).T - squares
        home = labels[span]
        own = np.take_along_axis(scores, home[:, None], axis=1)
        border = np.divide(
            own - scores, 2 * apart[home], out=np.full_like(scores, np.inf), where=apart[home] > 0
        )
        nearest = np.argpartition(border, VISITS, axis=1)[:, :VISITS]
        rows, columns = np.nonzero(
            np.take_along_axis(border, nearest, axis=1) <= np.sqrt((1 - threshold) / 2)
        )
        visitors.append(place[span][rows])
        visited.append(nearest[rows, columns])
    by_cell = np.argsort(np.concatenate(visited), kind="stable")
    return _Cells(
        order,
        _starts(labels, count),
        np.concatenate(visitors)[by_cell],
        _starts(np.concatenate(visited), count),
    )


def _starts(labels: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=count))])


def _within(rows: Shelf, members: np.ndarray, visitors: np.ndarray, floor: float) -> Iterator[Pairs]:
    """A cell's pairs: of members, each once, and of a visitor and a member."""
    for first in range(0, len(members), COLUMNS):
        right = members[first : first + COLUMNS]
        points = rows[right]
        # those before the last of these columns; of the rows among them, the triangle
        others = np.concatenate([members[: first + COLUMNS], visitors])
        for start in range(0, len(others), COLUMNS // 4):
            left = others[start : start + COLUMNS // 4]
            i, j, cosines = _close(rows[left] @ points.T, rows.squares[left], rows.squares[right], floor)
            once = (start + i < first + j) | (start + i >= first + len(right))
            yield left[i[once]], right[j[once]], cosines[once]


def _close(products: np.ndarray, left: np.ndarray, right: np.ndarray, floor: float) -> Pairs:
    """Where cosines are at least ``floor``, and these, from (a, b) inner products, (a,) and (b,) squared lengths."""
    left, right = (np.sqrt(np.where(squares > 0, squares, np.inf)) for squares in (left, right))
    i, j = np.nonzero(products >= np.float32((floor - ROUNDING) * left.min() * right.min()))
    cosines = products[i, j] / (left[i] * right[j])
    found = cosines >= np.float32(floor)
    return i[found], j[found], cosines[found]


def _joined(groups: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
    """The groups, as (n,) first rows, once the pairs are joined too."""
    n = len(groups)
    ends = np.concatenate([np.stack([np.arange(n), groups]), *pairs], axis=1)
    links = coo_array((np.ones(ends.shape[1], dtype=bool), (ends[0], ends[1])), shape=(n, n))
    _, labels = connected_components(links, directed=False)
    return np.unique(labels, return_index=True)[1][labels]
