"""The numbers behind a selection's page: histograms, and how near its rows are to each other and to the pool's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from backcast.progress import progress
from backcast.report.choice import Histogram, Nearness, Summary
from backcast.vectors import Features, sample

#: Rows, at most, that are asked for their nearest chosen one.
SAMPLE = 2000
#: Random subsets that the chosen one is set against.
RANDOM = 3
#: Chosen rows compared with the sample at once.
BLOCK = 4096
#: Bins of a histogram, and the share of rows beyond each of its ends.
BINS, BEYOND = 40, 0.001
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def histogram(of: str, groups: Mapping[str, np.ndarray]) -> Histogram:
    """Each group's (r,) numbers in the same `BINS`, between the outermost `BEYOND` of any of the groups."""
    ends = np.array([np.quantile(values, [BEYOND, 1 - BEYOND]) for values in groups.values()])
    low, high = float(ends.min()), float(ends.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    return Histogram(
        of=of,
        edges=edges.tolist(),
        counts=[np.histogram(values.clip(low, high), edges)[0].tolist() for values in groups.values()],
        groups=[summary(name, values) for name, values in groups.items()],
    )


def summary(name: str, values: np.ndarray) -> Summary:
    """Mean and percentiles of (r,) numbers."""
    return Summary(
        name=name,
        count=len(values),
        mean=float(values.mean(dtype=np.float64)),
        quantiles=tuple(np.quantile(values, QUANTILES).tolist()),
    )


def nearness(features: Features, chosen: np.ndarray) -> tuple[Nearness | None, Nearness]:
    """How near the chosen rows are to each other (None of one row), and the pool's to them, beside random subsets.

    Seeded samples of s = `SAMPLE` rows of each subset and of the pool are compared with all k rows of the subset, in
    1 + `RANDOM` subsets: O(s k d) time, O(s d) memory.

    Args:
        features: of the pool.
        chosen: (k,) positions.
    """
    n, k = len(features), len(chosen)
    subsets = [sample(n, k, 1 + seed) for seed in range(RANDOM)] + [np.sort(chosen)]
    pool = features[sample(n, SAMPLE, 0)]
    with progress("nearest chosen rows", k * len(subsets)) as done:
        found = [nearest(features, subset, subset[sample(k, SAMPLE, 0)], pool, done) for subset in subsets]
    apart, covered = zip(*found, strict=True)
    redundancy = _nearness("cosine to the nearest other chosen row", apart, k) if k > 1 else None
    return redundancy, _nearness("cosine to the nearest chosen row", covered, n)


def _nearness(of: str, cosines: Sequence[np.ndarray], rows: int) -> Nearness:
    *random, chosen = cosines
    return Nearness(
        cosines=histogram(of, {"random": np.concatenate(random), "chosen": chosen}),
        random_means=[float(each.mean(dtype=np.float64)) for each in random],
        asked=(len(chosen), rows),
    )


def nearest(
    features: Features, among: np.ndarray, asked: np.ndarray, rows: np.ndarray, done: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """The highest cosines with a row of a subset: of some of its own with another one, and of any rows.

    Args:
        features: n rows.
        among: (k,) positions, the subset.
        asked: (a,) positions of the subset.
        rows: (q, d) unit rows.
        done: told the rows of the subset that are compared.

    Returns:
        (a,) and (q,) cosines. O((a + q) k d).
    """
    own = features[asked]
    apart, covered = (np.full(len(each), -1, dtype=np.float32) for each in (own, rows))
    for start in range(0, len(among), BLOCK):
        block = among[start : start + BLOCK]
        others = features[block].T
        cosines = own @ others
        cosines[asked[:, None] == block] = -1
        np.maximum(apart, cosines.max(axis=1), out=apart)
        np.maximum(covered, (rows @ others).max(axis=1), out=covered)
        done(len(block))
    return apart.clip(max=1), covered.clip(max=1)
