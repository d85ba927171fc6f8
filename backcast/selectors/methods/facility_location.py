"""A small set that stands for all the helpful examples of the pool."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

import numpy as np

from backcast.errors import InputError
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.selection import Selection

#: The most examples of positive quality: their dense similarities take 1.6 GB. Below 2¹⁵, see `_fixed`.
LIMIT = 20_000

#: Rows of the similarity matrix made at once.
BLOCK = 128


@dataclass(frozen=True)
class FacilityLocation:
    """Greedy maximisation of f(S) = Σ_i w_i max_{j∈S} w_j max(0, cos(i, j)).

    w_i is example i's *quality*: its score for the target that it serves best, negative ones as zero, over
    the largest, to the power ``quality``. So neither does a spoilt outlier need to be represented, nor does
    it represent others: the kernel is w_i cos(i, j) w_j, the quality and diversity of Kulesza & Taskar
    (2012, §3.1). f is monotone and submodular, so that greedy reaches (1 − 1/e) of the best possible
    (Nemhauser, Wolsey & Fisher 1978); lazy evaluation (Minoux 1978) gives the same picks sooner.

    The best target rather than the mean, as in the relevance term of the mutual information functions of
    Kothawade et al. ("PRISM", 2022): what helps one target and hinders the others has a low mean, and yet is
    wanted.

    A pick's gain is its share of f(pool). When nothing is left to gain, the rest goes by quality, then by
    mean score, then by content id, with a gain of zero. Time O(p² d) for the p examples of positive quality,
    then O(p) an evaluation; memory 4 p² bytes.

    Args:
        quality: 0 is the plain facility location of the pool, whatever the scores (and so it is without
            scores); the larger, the nearer to the plain order of quality.

    Raises:
        InputError: no features, or p > `LIMIT`.
    """

    quality: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.quality < float("inf"):
            raise InputError(f"facility_location: quality={self.quality!r} must be a number from 0 up")

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        features = evidence.need_features("facility_location")
        weights = self._weights(evidence)
        order = evidence.ranked(evidence.best)  # the order in which ties are broken, and the rest is taken
        useful = order[weights[order] > 0]
        if len(useful) > LIMIT:
            raise InputError(
                f"facility_location: {len(useful)} examples of positive quality, at most {LIMIT} fit into "
                "memory; filter the pool first, or use round_robin"
            )
        picks, gains = lazy_greedy(
            benefits(features.points(useful), weights[useful]), weights[useful], allowance, useful
        )
        taken = np.zeros(len(evidence), dtype=bool)
        taken[useful[picks]] = True
        rest = allowance.first(order[~taken[order]])
        return Selection(
            evidence, np.concatenate([useful[picks], rest]), np.concatenate([gains, np.zeros(len(rest))])
        )

    def _weights(self, evidence: Evidence) -> np.ndarray:
        if evidence.scores is None or self.quality == 0:
            return np.ones(len(evidence))
        score = np.maximum(evidence.best, 0)
        return _fixed((score / (score.max() or 1)) ** self.quality, 20)


def _fixed(values: np.ndarray, bits: int) -> np.ndarray:
    """Values rounded to multiples of 2^−bits.

    Fixed point keeps every sum of this module exact, whatever its order, so that no BLAS, thread count or
    shuffle of the pool changes a pick: inner products of unit vectors at 2⁻¹¹ are multiples of 2⁻²² below 2,
    exact in float32; sums of fewer than 2¹⁵ products of a benefit (2⁻¹⁸) and a weight (2⁻²⁰) are exact in
    float64. The price is an error of about 2e-4 in a cosine.
    """
    scaled = values * 2.0**bits
    return np.rint(scaled, out=scaled) / 2.0**bits


def benefits(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(p, p) float32, row j what example j does for each: w_j max(0, cos(j, i))."""
    out = np.empty((len(points), len(points)), dtype=np.float32)
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        cosines = np.maximum(points[block] @ points.T, 0)
        out[block] = _fixed(weights[block, None] * cosines, 18)
    return out


def lazy_greedy(
    benefit: np.ndarray, weights: np.ndarray, allowance: Allowance, names: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy picks for f(S) = Σ_i weights_i max_{j∈S} benefit[j, i], until nothing is left to gain.

    A gain only falls as S grows, so an old gain is an upper bound: only a candidate whose bound comes first
    is worth evaluating, and one that still comes first after that is the greedy pick (Minoux 1978). Ties go
    to the lower index.

    Args:
        benefit: (p, p), not negative; a row a candidate.
        weights: (p,), not negative.
        allowance: what may be picked.
        names: (p,) the candidates' positions in the allowance.

    Returns:
        The picks' indices in order, and their gains as shares of f of all candidates.
    """
    covered = np.zeros(len(weights), dtype=benefit.dtype)

    def gain(j: int) -> float:
        return float(np.maximum(benefit[j] - covered, 0).astype(np.float64) @ weights)

    picks: list[int] = []
    gains: list[float] = []
    heap = [(-gain(j), j, 0) for j in range(len(benefit))]  # −bound, candidate, how many picks it knows of
    heapify(heap)
    while heap and not allowance.full:
        bound, j, known = heap[0]
        if bound == 0:
            break
        if not allowance.fits(names[j]):
            heappop(heap)
            continue
        if known < len(picks):
            heapreplace(heap, (-gain(j), j, len(picks)))
            continue
        heappop(heap)
        allowance.take(names[j])
        picks.append(j)
        gains.append(-bound)
        np.maximum(covered, benefit[j], out=covered)
    total = float(benefit.max(axis=0, initial=0).astype(np.float64) @ weights)
    return np.asarray(picks, dtype=np.int64), np.asarray(gains) / (total or 1)
