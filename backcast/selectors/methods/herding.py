"""A set with the pool's mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.progress import progress
from backcast.selectors.allowance import Allowance
from backcast.selectors.evidence import Evidence
from backcast.selectors.greedy import Useful, check_quality, mean_direction, products, squares
from backcast.selectors.selection import Selection


@dataclass(frozen=True)
class Herding:
    """Picks one after another whose running mean follows that of the pool, μ = Σ_i w_i x_i / Σ_i w_i: the next pick is
    argmax_j ⟨x_j, (t + 1) μ − Σ_{s∈S} x_s⟩ after t picks, each example at most once.

    w_i is example i's quality (`Useful`), x_i its unit row. Drawing with returns, the error ‖μ − mean(S)‖ falls as
    1/k for finite dimensions, against k^−½ at random; without, it ends at ‖μ − mean(V)‖. Ties go to the higher best
    score, then mean score, then content id.

    A pick's gain is the squared error that it takes away, as a share of ‖μ‖²: together they are 1 − ‖μ − mean(S)‖² /
    ‖μ‖², and one may be negative. Examples without quality follow, with gains of zero. Time O(p d) a pick, memory
    4 p d bytes, for p examples of positive quality.

    Args:
        quality: the power of the quality; 0 counts all examples alike, whatever the scores.

    Source: Welling 2009, Herding dynamical weights to learn; Chen, Welling & Smola 2010, Super-samples from kernel
    herding (eq. 7, 8), with the linear kernel.
    """

    quality: float = 2.0

    def __post_init__(self) -> None:
        check_quality("herding", self.quality)

    def select(self, evidence: Evidence, allowance: Allowance, rng: np.random.Generator) -> Selection:
        useful = Useful.of(evidence, self.quality, "herding")
        points = useful.features.points()
        mean = mean_direction(points, useful.quality)
        wanted = products(points, mean)
        picks, lengths = _herd(points, wanted, allowance, useful.places)
        t, whole = np.arange(1, len(picks) + 1), float(mean @ mean)
        errors = whole - 2 * np.cumsum(wanted[picks]) / t + lengths / t**2  # ‖μ − mean(S)‖²
        gains = -np.diff(errors, prepend=whole) / (whole or 1)
        return useful.selection(evidence, allowance, picks, gains)


def _herd(
    points: np.ndarray, wanted: np.ndarray, allowance: Allowance, names: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """The picks, and ‖Σ_{s∈S} x_s‖² after each; ``wanted`` is ⟨x_j, μ⟩."""
    picks: list[int] = []
    added: list[float] = []
    had = np.zeros(len(points))  # ⟨x_j, Σ_{s∈S} x_s⟩; infinite where j is no candidate any more
    lengths = squares(points)
    with progress("herding", allowance.size) as done:
        while not allowance.full:
            values = (len(picks) + 1) * wanted - had
            j = int(values.argmax()) if len(values) else -1
            if j < 0 or had[j] == np.inf:
                break
            before, had[j] = had[j], np.inf
            if not allowance.fits(names[j]):
                continue
            allowance.take(names[j])
            picks.append(j)
            added.append(lengths[j] + 2 * before)
            had += points @ points[j]
            done(1)
    return picks, np.cumsum(added)
