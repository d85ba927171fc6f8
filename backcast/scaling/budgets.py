"""A table's runs put together by n, and what can be seen in them before any law is fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from backcast.scaling.table import Observation


@dataclass(frozen=True)
class Budgets:
    """K distinct n in rising order, oriented so that lower is better.

    Attributes:
        n: (K,).
        mean: (K,) the runs' mean value.
        count: (K,) runs.
        scatter: (K,) sums of squares around the mean.
        se: (K,) the given standard error where there is one run; else 0, as the runs' scatter shows the noise.
        best: the metric's best value, -inf when unbounded.
    """

    n: np.ndarray
    mean: np.ndarray
    count: np.ndarray
    scatter: np.ndarray
    se: np.ndarray
    best: float

    @classmethod
    def of(cls, runs: Sequence[Observation], sign: float, best: float) -> Budgets:
        """``sign`` turns the metric so that lower is better; ``best`` is turned already."""
        runs = sorted(
            runs, key=lambda run: (run.n, run.value)
        )  # sums in an order that is the table's no more
        n, place = np.unique([run.n for run in runs], return_inverse=True)
        y = sign * np.array([run.value for run in runs])
        count = np.bincount(place)
        mean = np.bincount(place, y) / count
        se = np.bincount(place, [run.se or 0.0 for run in runs])
        return cls(
            n=n,
            mean=mean,
            count=count,
            scatter=np.bincount(place, (y - mean[place]) ** 2),
            se=np.where(count == 1, se, 0.0),
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
        return int((self.count - 1).sum())

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
