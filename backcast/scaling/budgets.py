"""A table's runs put together by n, and what can be seen in them before any law is fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from backcast.scaling.table import Observation

#: Curves of more sizes than this are brought together into about as many stretches of log n.
MOST = 24


@dataclass(frozen=True)
class Budgets:
    """K distinct n in rising order, oriented so that lower is better.

    A curve that was measured at hundreds of sizes is put together by stretches of log n, each one budget at its runs'
    mean n and value: the law sees no more in them one by one. The first and the last size stay what they are.

    Attributes:
        n: (K,).
        mean: (K,) the runs' mean value.
        count: (K,) runs.
        scatter: (K,) sums of squares around the mean, or, in a stretch, around its trend.
        free: (K,) degrees of freedom of ``scatter``.
        se: (K,) the given standard error where an n has one run, a stretch's root mean square; else 0, as the runs'
            scatter shows the noise.
        best: the metric's best value, -inf when unbounded.
    """

    n: np.ndarray
    mean: np.ndarray
    count: np.ndarray
    scatter: np.ndarray
    free: np.ndarray
    se: np.ndarray
    best: float

    @classmethod
    def of(cls, runs: Sequence[Observation], sign: float, best: float) -> Budgets:
        """``sign`` turns the metric so that lower is better; ``best`` is turned already."""
        # Sums in an order that is the table's no more.
        runs = sorted(runs, key=lambda run: (run.n, sign * run.value))
        log_n, y = np.log([run.n for run in runs]), sign * np.array([run.value for run in runs])
        se = np.array([run.se or 0.0 for run in runs])
        place = _places(log_n)
        count = np.bincount(place)
        middle, mean = np.bincount(place, log_n) / count, np.bincount(place, y) / count
        x, r = log_n - middle[place], y - mean[place]
        steep = np.bincount(place, x * x)
        slope = np.bincount(place, x * r) / np.where(steep > 0, steep, 1.0)
        same = np.isclose(steep, 0.0, atol=1e-12)
        first = np.unique(place, return_index=True)[1]
        n = np.where(same, np.array([run.n for run in runs])[first], np.exp(middle))
        return cls(
            n=n,
            mean=mean,
            count=count,
            scatter=np.bincount(place, (r - slope[place] * x) ** 2),
            free=np.maximum(count - np.where(same, 1, 2), 0),
            se=np.where(same & (count > 1), 0.0, np.sqrt(np.bincount(place, se**2) / count)),
            best=best,
        )

    def __len__(self) -> int:
        return len(self.n)

    @cached_property
    def log_n(self) -> np.ndarray:
        return np.log(self.n)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of `seed_noise`."""
        return int(self.free.sum())

    @cached_property
    def seed_noise(self) -> float:
        """Standard deviation between a budget's runs, pooled over n; 0 when no budget has two."""
        return math.sqrt(self.scatter.sum() / self.freedom) if self.freedom else 0.0

    @cached_property
    def spread(self) -> float:
        """The unit of the priors: how far the budgets' means lie apart, or the noise where that is more."""
        least = max(1e-6 * float(np.abs(self.mean).max()), 1e-12)
        return max(float(np.ptp(self.mean)), self.seed_noise, least)

    @cached_property
    def flat(self) -> bool:
        """Whether the last budgets are no better than the first, beyond the noise."""
        return self._stalled(0)

    @cached_property
    def saturated(self) -> bool:
        """Whether the metric did improve, but no more over the later half of the budgets (three at least)."""
        later = len(self) // 2
        return not self.flat and len(self) - later >= 3 and self._stalled(later)

    def _stalled(self, start: int) -> bool:
        """Whether the last third of ``mean[start:]`` is no better than its first, one-sided at 5 %.

        The noise of a mean is the seeds', or that which neighbouring budgets show (von Neumann), whichever is more.
        """
        mean = self.mean[start:]
        third = max(1, len(mean) // 3)
        gained = mean[:third].mean() - mean[-third:].mean()
        seeds = np.median(self.seed_noise / np.sqrt(self.count))
        neighbours = np.sqrt(np.mean(np.diff(mean) ** 2) / 2) if len(mean) > 2 else 0.0
        return bool(gained <= 1.645 * max(seeds, neighbours) * math.sqrt(2 / third))

    @cached_property
    def rise(self) -> tuple[int, int] | None:
        """The budgets i < j between which the mean gets worse the most, if that is beyond the noise; else None."""
        worse = np.triu(self.mean[None, :] - self.mean[:, None], 1)
        i, j = np.unravel_index(worse.argmax(), worse.shape)
        if self.freedom >= 3:
            noise = 4 * self.seed_noise * math.sqrt(1 / self.count[i] + 1 / self.count[j])
        elif self.se.any():
            noise = 4 * math.hypot(self.se[i], self.se[j])
        else:
            noise = self.spread / 4
        return (int(i), int(j)) if worse[i, j] > noise else None


def _places(log_n: np.ndarray) -> np.ndarray:
    """(R,) which budget each of the runs, in rising order, belongs to."""
    sizes, place = np.unique(log_n, return_inverse=True)
    if len(sizes) <= MOST:
        return place
    share = (sizes - sizes[0]) / (sizes[-1] - sizes[0])
    stretch = 1 + np.floor((MOST - 2) * share).astype(int)
    stretch[0], stretch[-1] = 0, MOST
    return np.unique(stretch, return_inverse=True)[1][place]
