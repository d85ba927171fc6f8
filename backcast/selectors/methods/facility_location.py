"""A small set that stands for all the helpful examples of the pool."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from math import ceil, log
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from backcast.errors import InputError
from backcast.progress import progress
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.greedy import Useful, check_quality
from backcast.selectors.selection import Selection
from backcast.vectors import fixed, neighbour_graph

#: The most examples that are all compared with each other: their similarities take 1.6 GB.
LIMIT = 20_000

#: The fewest and the most neighbours that are looked for unasked.
NEIGHBOURS = 64, 256

#: Rows of the similarity matrix made at once.
BLOCK = 128


@dataclass(frozen=True)
class FacilityLocation:
    """Greedy maximisation of f(S) = Σ_i w_i max_{j∈S} w_j max(0, cos(i, j)).

    w_i is example i's quality (`Useful`). So neither does a spoilt outlier need to be represented, nor does it
    represent others: the kernel is w_i cos(i, j) w_j, the quality and diversity of Kulesza & Taskar (2012, §3.1). f is
    monotone and submodular, so that greedy reaches (1 − 1/e) of the best possible (Nemhauser, Wolsey & Fisher 1978);
    lazy evaluation (Minoux 1978) gives the same picks sooner. The best target's score is the relevance term of the
    mutual information functions of Kothawade et al. ("PRISM", 2022).

    Of more than `LIMIT` examples of positive quality each is compared with its nearest neighbours only, and with those
    that have it for a neighbour; other similarities count zero (`neighbour_graph`).

    A pick's gain is its share of f(pool). When nothing is left to gain, the rest goes by quality, then by mean score,
    then by content id, with a gain of zero. For the p examples of positive quality: time O(p² d), then O(p) an
    evaluation, memory 4 p² bytes; with g neighbours, the graph, then about O(g) an evaluation, memory 50 p g bytes.

    Args:
        quality: the power of the quality; 0 is the plain facility location of the pool, whatever the scores; the
            larger, the nearer to the plain order of quality.
        epsilon: 0 for the lazy greedy; else each pick is the best of (p / k) ln(1/ε) examples drawn at random, for k
            about the budget in examples: stochastic greedy, 1 − 1/e − ε of the best in expectation, O(p ln(1/ε))
            evaluations in all, whatever k (Mirzasoleiman et al. 2015, Lazier than lazy greedy, algorithm 1).
        neighbours: g, how many each example is compared with past `LIMIT`; by default 3 p / k, at least 64 and at most
            256, so that about three picks are among them.

    Raises:
        InputError: no features, or a parameter out of range.
    """

    quality: float = 2.0
    epsilon: float = 0.0
    neighbours: int | None = None

    def __post_init__(self) -> None:
        check_quality("facility_location", self.quality)
        if not 0 <= self.epsilon < 1:
            raise InputError(f"facility_location: epsilon={self.epsilon!r} must be from 0 to below 1")
        if self.neighbours is not None and (not isinstance(self.neighbours, int) or self.neighbours < 1):
            raise InputError(
                f"facility_location: neighbours={self.neighbours!r} must be a whole number from 1 up"
            )

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        useful = Useful.of(evidence, self.quality, "facility_location")
        weights = useful.quality
        benefit: Benefit
        if len(useful) <= LIMIT:
            benefit = Dense(benefits(useful.features.points(), weights))
        else:
            wanted = self.neighbours or default_neighbours(len(useful), allowance.size)
            benefit = Sparse(neighbour_graph(useful.features, wanted), weights)
        cover = Cover(benefit, weights)
        if self.epsilon:
            draws = ceil(len(useful) / allowance.size * log(1 / self.epsilon))
            picks, gains = stochastic_greedy(cover, allowance, useful.places, draws, rng)
        else:
            picks, gains = lazy_greedy(cover, allowance, useful.places)
        return useful.selection(evidence, allowance, picks, gains / (cover.total or 1))


def default_neighbours(p: int, k: int) -> int:
    """How many of p examples to compare each with for k picks.

    With three picks expected among them, f fell short of that of the dense kernel by at most 0.8 %, on gradient
    sketches of docstrings and on clusters; with one, by up to 15 % (p = 5,000, k = 50 and 250).
    """
    least, most = NEIGHBOURS
    return min(max(ceil(3 * p / k), least), most)


def benefit_bits(p: int) -> int:
    """Fraction bits of a benefit, so that the sums of p products with a quality are exact in float64.

    A quality has 20 bits. Then no BLAS, thread count or shuffle of the pool changes a pick; the price, with that of
    the points, is an error of about 2e-4 in a cosine.
    """
    return min(18, 33 - p.bit_length())


def benefits(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(p, p) float32, row j what example j does for each: w_j max(0, cos(j, i))."""
    out = np.empty((len(points), len(points)), dtype=np.float32)
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        cosines = np.maximum(points[block] @ points.T, 0)
        out[block] = fixed(weights[block, None] * cosines, benefit_bits(len(points)))
    return out


class Benefit(Protocol):
    """What each of p candidates does for the examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, j: int) -> tuple[slice | np.ndarray, np.ndarray]:
        """The examples that candidate j does something for, and what, not negative."""
        ...


@dataclass(frozen=True)
class Dense:
    """Every benefit: ``values`` (p, p), a row a candidate."""

    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, j: int) -> tuple[slice, np.ndarray]:
        return slice(None), self.values[j]


class Sparse:
    """The benefits along the edges of a neighbour graph, in either direction."""

    def __init__(self, graph: csr_array, weights: np.ndarray) -> None:
        edges = csr_array(graph.maximum(graph.T))
        self._starts, self._places = edges.indptr, edges.indices
        values = edges.data * np.repeat(weights, np.diff(edges.indptr))
        self._values = fixed(values, benefit_bits(len(weights))).astype(np.float32)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        edges = slice(self._starts[j], self._starts[j + 1])
        return self._places[edges], self._values[edges]


class Cover:
    """f(S) = Σ_i weights_i max_{j∈S} benefit_ji, as S grows.

    Attributes:
        total: f of all candidates.
    """

    def __init__(self, benefit: Benefit, weights: np.ndarray) -> None:
        self._benefit = benefit
        self._weights = weights
        self._covered = np.zeros(len(weights), dtype=np.float32)  # max_{j∈S} benefit_ji
        for j in range(len(benefit)):
            self.add(j)
        self.total = float(self._covered.astype(np.float64) @ weights)
        self._covered[:] = 0

    def __len__(self) -> int:
        return len(self._benefit)

    def gain(self, j: int) -> float:
        """f(S + j) − f(S)."""
        places, values = self._benefit[j]
        more = np.maximum(values - self._covered[places], 0)
        return float(more.astype(np.float64) @ self._weights[places])

    def add(self, j: int) -> None:
        """Candidate j joins S."""
        places, values = self._benefit[j]
        self._covered[places] = np.maximum(self._covered[places], values)


def lazy_greedy(cover: Cover, allowance: Allowance, names: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Greedy picks until nothing is left to gain, and their (k,) gains.

    A gain only falls as S grows, so an old gain is an upper bound: only a candidate whose bound comes first
    is worth evaluating, and one that still comes first after that is the greedy pick (Minoux 1978). Ties go
    to the lower place.

    Args:
        cover: f; its candidates have ``names``, (p,) positions in the allowance.
        allowance: what may be picked.
    """
    picks: list[int] = []
    gains: list[float] = []
    heap = [
        (-cover.gain(j), j, 0) for j in range(len(cover))
    ]  # −bound, candidate, how many picks it knows of
    heapify(heap)
    with progress("facility location", allowance.size) as done:
        while heap and not allowance.full:
            bound, j, known = heap[0]
            if bound == 0:
                break
            if not allowance.fits(names[j]):
                heappop(heap)
                continue
            if known < len(picks):
                heapreplace(heap, (-cover.gain(j), j, len(picks)))
                continue
            heappop(heap)
            allowance.take(names[j])
            cover.add(j)
            picks.append(j)
            gains.append(-bound)
            done(1)
    return picks, np.asarray(gains)


def stochastic_greedy(
    cover: Cover, allowance: Allowance, names: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[list[int], np.ndarray]:
    """As `lazy_greedy`, but each pick is the best of so many draws, with returns, from the candidates left."""
    picks: list[int] = []
    gains: list[float] = []
    left = np.arange(len(cover))
    with progress("facility location", allowance.size) as done:
        while len(left) and not allowance.full:
            drawn = np.unique(rng.bit_generator.random_raw(draws) % len(left)).astype(np.int64)
            found = np.asarray([cover.gain(j) if allowance.fits(names[j]) else 0.0 for j in left[drawn]])
            best = int(found.argmax())
            if found[best] > 0:
                j = int(left[drawn[best]])
                allowance.take(names[j])
                cover.add(j)
                picks.append(j)
                gains.append(float(found[best]))
                found[best] = 0
                done(1)
            left = np.delete(left, drawn[found == 0])  # what gains nothing, or does not fit, never will
    return picks, np.asarray(gains)
