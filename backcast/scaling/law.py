"""A fitted law: several forms' posteriors, weighted; what it predicts and where it meets a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from backcast.errors import InputError
from backcast.scaling.budgets import Budgets
from backcast.scaling.calibration import Calibration, calibrated
from backcast.scaling.inversion import Inversion
from backcast.scaling.posterior import Posterior
from backcast.scaling.trend import Trend

#: Curves drawn from all forms together.
DRAWS = 2000
#: A target that is met only past this many times the largest budget counts as never met.
HORIZON = 1e6
#: How far below the smallest budget n* is still looked for.
BELOW = 1e-3
#: Budgets that a development curve has at least: answers from fewer are not calibrated.
FEWEST = 3
#: How far past the data, in log n, a target is looked for finely.
NEAR = 3.0
#: For budgets that show no progress at all, the chance that progress starts past them, anywhere up to the horizon.
TAKE_OFF = 0.5
#: Above this potential scale reduction the sampler is said not to have converged.
CONVERGED = 1.2


@dataclass(frozen=True)
class Prediction:
    """The curve at K values of n, in the metric's own direction.

    Attributes:
        n: (K,).
        mean: (K,).
        levels: (L,) of the quantiles.
        quantiles: (L, K) of the curve.
        noise: (K,) standard deviation of one run around the curve.
    """

    n: np.ndarray
    mean: np.ndarray
    levels: np.ndarray
    quantiles: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Law:
    """A posterior over learning curves.

    Attributes:
        budgets: the table's runs put together by n, lower being better.
        posteriors: one a form.
        trend: the curve without a form.
        weights: each one's share, by name; they add up to 1.
        higher_is_better: the metric's direction.
        bounds: its range.
        group: which of the table's curves this is; empty when there was one.
    """

    budgets: Budgets
    posteriors: Sequence[Posterior]
    trend: Trend
    weights: Mapping[str, float]
    higher_is_better: bool
    bounds: tuple[float, float]
    group: str = ""
    _sign: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sign", -1.0 if self.higher_is_better else 1.0)

    @property
    def parts(self) -> list[Posterior | Trend]:
        """The forms' posteriors and the trend."""
        return [*self.posteriors, self.trend]

    @cached_property
    def draws(self) -> list[Posterior | Trend]:
        """About `DRAWS` equally likely curves, each part's in proportion to its weight."""
        counts = self._counts(self.parts)
        return [
            part.take(_spread(len(part), count))
            for part, count in zip(self.parts, counts, strict=True)
            if count
        ]

    @cached_property
    def form_draws(self) -> list[Posterior]:
        """The same of the forms alone, which have a floor."""
        counts = self._counts(self.posteriors)
        return [
            p.take(_spread(len(p), count)) for p, count in zip(self.posteriors, counts, strict=True) if count
        ]

    def _counts(self, parts: Sequence[Posterior | Trend]) -> list[int]:
        weight = np.array([self.weights[part.name] for part in parts]) + 1e-300  # where all of them underflow
        return np.round(DRAWS * weight / weight.sum()).astype(int).tolist()

    def curves(self, n: Any) -> np.ndarray:
        """(S, K) values of the drawn curves at K values of n, in the metric's own direction."""
        log_n = np.log(_sizes(n))
        return self._sign * np.concatenate([part.curve(log_n) for part in self.draws])

    def run_variance(self, n: Any, seeds: int = 1) -> np.ndarray:
        """(S, K) variance, for each drawn curve, of the mean of ``seeds`` fresh runs at n."""
        log_n = np.log(_sizes(n))
        return np.concatenate([part.run_variance(log_n, seeds) for part in self.draws])

    def predict(self, n: Any, levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> Prediction:
        """The curve at ``n``, a number or K of them: mean and quantiles over the posterior."""
        sizes = _sizes(n)
        curves = self._sign * self.curves(sizes)
        turned = 1.0 - np.asarray(levels) if self.higher_is_better else np.asarray(levels)
        return Prediction(
            n=sizes,
            mean=self._sign * curves.mean(axis=0),
            levels=np.asarray(levels),
            quantiles=self._sign * np.quantile(curves, turned, axis=0),
            noise=np.sqrt(np.median(self.run_variance(sizes), axis=0)),
        )

    def invert(self, target: float, level: float = 0.9, calibration: Calibration | None = None) -> Inversion:
        """The least n whose expected value meets ``target``, with the central interval of probability ``level``.

        Past the budgets that were run, n* is calibrated on development curves: ``calibration``'s, or those shipped.

        Raises:
            InputError: for a target outside the metric's range, or a level outside (0, 1).
        """
        low, high = self.bounds
        if not (math.isfinite(target) and low <= target <= high):
            raise InputError(
                f"target {target:g} is outside the metric's range {low:g} to {high:g}; give one inside it"
            )
        if not 0 < level < 1:
            raise InputError(f"level {level:g} is not a probability; give one between 0 and 1, e.g. 0.9")
        n_max = float(self.budgets.n[-1])
        samples = self.n_at(target)
        if len(self.budgets) >= FEWEST:
            samples = calibrated(samples, n_max, calibration or Calibration.shipped())
        return Inversion.of(
            samples,
            target=target,
            level=level,
            n_min=float(self.budgets.n[0]),
            n_max=n_max,
            higher_is_better=self.higher_is_better,
            flat=self.budgets.flat,
            group=self.group,
        )

    def n_at(self, target: float) -> np.ndarray:
        """(S,) n* of every drawn curve; inf where it never meets the target."""
        first, last = self.budgets.log_n[0], self.budgets.log_n[-1]
        low, high = first + math.log(BELOW), last + math.log(HORIZON)
        grid = self._grid(low, high)
        log_n = np.concatenate(
            [_first_below(grid, part.curve(grid), self._sign * target) for part in self.draws]
        )
        if self.budgets.flat:
            # A floor that was reached at once and a start that is still to come look alike.
            rng = np.random.default_rng(0)
            late = (log_n > last) & (rng.random(len(log_n)) < TAKE_OFF)
            log_n = np.where(late, rng.uniform(last, high, len(log_n)), log_n)
        return np.exp(log_n)

    def _grid(self, low: float, high: float) -> np.ndarray:
        """log n, dense where curves may bend."""
        seen = self.budgets.log_n
        within = np.interp(np.arange(0, len(seen) - 1, 0.25), np.arange(len(seen)), seen)
        near, far = np.arange(seen[-1], seen[-1] + NEAR, 0.04), np.arange(seen[-1] + NEAR, high, 0.15)
        return np.concatenate([np.linspace(low, seen[0], 16, endpoint=False), within, near, far, [high]])

    @property
    def r_hat(self) -> float:
        """Potential scale reduction, 1 when the sampler's starts agree: the forms' weighted mean."""
        return sum(p.r_hat * self.weights[p.name] for p in self.parts)

    @property
    def converged(self) -> bool:
        """Whether the sampler's independent starts agree, to `CONVERGED`."""
        return self.r_hat < CONVERGED

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before believing the law, in sentences; empty when there is nothing."""
        budgets, found = self.budgets, []
        if budgets.flat:
            found.append(
                f"From n = {budgets.n[0]:g} to {budgets.n[-1]:g} the metric does not improve by more than its noise: "
                "no law can tell how it goes on."
            )
        elif budgets.saturated:
            found.append(
                f"The curve has levelled off: from n = {budgets.n[len(budgets) // 2]:g} to {budgets.n[-1]:g} the "
                "metric does not improve by more than its noise."
            )
        if budgets.rise is not None:
            i, j = budgets.rise
            found.append(
                f"The metric gets worse from n = {budgets.n[i]:g} ({self._sign * budgets.mean[i]:.4g}) to "
                f"n = {budgets.n[j]:g} ({self._sign * budgets.mean[j]:.4g}), beyond its noise; every law improves "
                "with n, and leaves such a dip to what it does not explain."
            )
        if not self.converged:
            found.append(
                f"The sampler's starts disagree (R-hat {self.r_hat:.2f}): take the intervals as rough."
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """A summary as a JSON object: budgets, weights, convergence, warnings."""
        b = self.budgets
        return {
            "group": self.group,
            "higher_is_better": self.higher_is_better,
            "budgets": [
                {"n": n, "mean": self._sign * mean, "runs": count}
                for n, mean, count in zip(b.n.tolist(), b.mean.tolist(), b.count.tolist(), strict=True)
            ],
            "weights": dict(self.weights),
            "r_hat": self.r_hat,
            "converged": self.converged,
            "warnings": list(self.warnings),
        }


def _spread(size: int, count: int) -> np.ndarray:
    """(count,) of ``size`` draws, evenly."""
    return np.arange(count) * size // count


def _first_below(grid: np.ndarray, curves: np.ndarray, value: float) -> np.ndarray:
    """(S,) where each of the curves, (S, G), first comes down to ``value``, between grid points linearly, else inf."""
    above = curves > value
    rows, met = np.arange(len(curves)), (~above).argmax(axis=1)
    before = np.maximum(met - 1, 0)
    upper, lower = curves[rows, before], curves[rows, met]
    drop = np.where(upper > lower, upper - lower, 1.0)
    share = ((upper - value) / drop).clip(0, 1)
    return np.where(above.all(axis=1), np.inf, grid[before] + share * (grid[met] - grid[before]))


def _sizes(n: Any) -> np.ndarray:
    """n as a (K,) array, checked."""
    sizes = np.atleast_1d(np.asarray(n, dtype=float))
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError(f"n must be above 0 and finite, not {n!r}")
    return sizes
