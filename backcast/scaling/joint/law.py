"""A fitted joint law: what n examples and another input give, and the cheapest of both for a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from backcast.errors import InputError
from backcast.scaling.joint.form import Cost
from backcast.scaling.joint.inversion import JointInversion
from backcast.scaling.joint.posterior import Cells, JointPosterior
from backcast.scaling.law import BELOW, CONVERGED, DRAWS, HORIZON


@dataclass(frozen=True)
class JointPrediction:
    """The curve at K combinations, in the metric's own direction.

    Attributes:
        n, other: (K,) each.
        mean: (K,).
        levels: (L,) of the quantiles.
        quantiles: (L, K) of the curve.
        noise: (K,) standard deviation of one run around the curve.
    """

    n: np.ndarray
    other: np.ndarray
    mean: np.ndarray
    levels: np.ndarray
    quantiles: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class JointLaw:
    """A posterior over curves in n and in another input.

    Attributes:
        by: the other input's column in the table.
        cells: the table's runs put together by (n, other), lower being better.
        posteriors: one a form.
        weights: each form's share, by name; they add up to 1.
        higher_is_better: the metric's direction.
        bounds: its range.
    """

    by: str
    cells: Cells
    posteriors: Sequence[JointPosterior]
    weights: Mapping[str, float]
    higher_is_better: bool
    bounds: tuple[float, float]

    @property
    def _sign(self) -> float:
        return -1.0 if self.higher_is_better else 1.0

    @cached_property
    def draws(self) -> list[JointPosterior]:
        """About `DRAWS` equally likely curves, each form's in proportion to its weight."""
        counts = {name: round(DRAWS * weight) for name, weight in self.weights.items()}
        return [
            p.take(np.arange(count) * len(p.x) // count) for p in self.posteriors if (count := counts[p.name])
        ]

    def curves(self, n: Any, other: Any) -> np.ndarray:
        """(S, K) values of the drawn curves at K combinations, in the metric's own direction."""
        n, other = self._combinations(n, other)
        return self._sign * np.concatenate([part.curve(np.log(n), other) for part in self.draws])

    def run_variance(self, n: Any, other: Any, seeds: int = 1) -> np.ndarray:
        """(S, K) variance, for each drawn curve, of the mean of ``seeds`` fresh runs at K combinations."""
        n, other = self._combinations(n, other)
        return np.concatenate([part.run_variance(np.log(n), other, seeds) for part in self.draws])

    def predict(
        self, n: Any, other: Any, levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
    ) -> JointPrediction:
        """The curve at combinations of ``n`` and ``other``, numbers or K of them: mean and quantiles.

        Raises:
            InputError: for an n that is not above 0, or a value that the other input cannot have.
        """
        n, other = self._combinations(n, other)
        curves = self._sign * self.curves(n, other)
        turned = 1.0 - np.asarray(levels) if self.higher_is_better else np.asarray(levels)
        return JointPrediction(
            n=n,
            other=other,
            mean=self._sign * curves.mean(axis=0),
            levels=np.asarray(levels),
            quantiles=self._sign * np.quantile(curves, turned, axis=0),
            noise=np.sqrt(np.median(self.run_variance(n, other), axis=0)),
        )

    def invert(
        self,
        target: float,
        cost: Cost | None = None,
        others: Sequence[float] | None = None,
        level: float = 0.9,
    ) -> JointInversion:
        """The cheapest combination whose expected value meets ``target``.

        For every drawn curve and every value of the other input the least n is found, and priced. O(S · O) calls of
        ``cost``, for S draws and O values.

        Args:
            cost: (n, other) → above 0, not falling as n grows; by default n · (epochs + 1), n · size, or n.
            others: the values of the other input on offer; by default those of the table, and for epochs and shares
                some between them. Nothing past the observed range is offered unless it is asked for.
            level: of the intervals, and how sure the combination to buy must be to meet the target.

        Raises:
            InputError: for a target outside the metric's range, a level outside (0, 1), a cost that is not above 0,
                and values that the other input cannot have.
        """
        low, high = self.bounds
        if not (math.isfinite(target) and low <= target <= high):
            raise InputError(
                f"target {target:g} is outside the metric's range {low:g} to {high:g}; give one inside it"
            )
        if not 0 < level < 1:
            raise InputError(f"level {level:g} is not a probability; give one between 0 and 1, e.g. 0.9")
        given = self.cells.input.grid(np.unique(self.cells.other)) if others is None else others
        values = np.unique(checked(self.by, given, self.cells.input.share))
        if not len(values):
            raise InputError(f"no values of {self.by} to choose from; give at least one in others")
        return JointInversion.of(
            self.n_at(target, values),
            values,
            _priced(self.cells.input.cost if cost is None else cost, self.by),
            target=target,
            level=level,
            by=self.by,
            higher_is_better=self.higher_is_better,
            seen=(self.cells.runs.n.max(), self.cells.other.min(), self.cells.other.max()),
            says=self.cells.input.says,
        )

    def n_at(self, target: float, others: np.ndarray) -> np.ndarray:
        """(S, O) the least n of every drawn curve at (O,) values of the other input; inf where it never gets there."""
        log_n = self.cells.log_n
        low, high = log_n.min() + math.log(BELOW), log_n.max() + math.log(HORIZON)
        return np.exp(
            np.concatenate([part.log_n_at(self._sign * target, others, low, high) for part in self.draws])
        )

    @property
    def r_hat(self) -> float:
        """Potential scale reduction, 1 when the sampler's starts agree: the forms' weighted mean."""
        return sum(p.r_hat * self.weights[p.name] for p in self.posteriors)

    @property
    def converged(self) -> bool:
        """Whether the sampler's independent starts agree."""
        return self.r_hat < CONVERGED

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before believing the law, in sentences; empty when there is nothing."""
        found = []
        for name, values in (("n", self.cells.runs.n), (self.by, self.cells.other)):
            if len(np.unique(values)) < 3:
                found.append(
                    f"Two values of {name} do not show how its effect bends: the prior fills that in."
                )
        if not self.converged:
            found.append(
                f"The sampler's starts disagree (R-hat {self.r_hat:.2f}): take the intervals as rough."
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """A summary as a JSON object: cells, weights, convergence, warnings."""
        runs = self.cells.runs
        columns = (runs.n, self.cells.other, self._sign * runs.mean, runs.count)
        return {
            "by": self.by,
            "higher_is_better": self.higher_is_better,
            "cells": [
                {"n": n, self.by: other, "mean": mean, "runs": count}
                for n, other, mean, count in zip(*(column.tolist() for column in columns), strict=True)
            ],
            "weights": dict(self.weights),
            "r_hat": self.r_hat,
            "converged": self.converged,
            "warnings": list(self.warnings),
        }

    def _combinations(self, n: Any, other: Any) -> tuple[np.ndarray, np.ndarray]:
        """Both as (K,) arrays, checked."""
        n, other = np.broadcast_arrays(_above_0("n", n), checked(self.by, other, self.cells.input.share))
        return n, other


def checked(name: str, values: Any, share: bool) -> np.ndarray:
    """Values of the other input as an array.

    Raises:
        InputError: for one that is not in [0, 1] if it is a share, else not above 0 and finite.
    """
    if not share:
        return _above_0(name, values)
    array = np.atleast_1d(np.asarray(values, dtype=float))
    bad = array[~((array >= 0) & (array <= 1))]
    if len(bad):
        raise InputError(f"{name} is {bad[0]:g}; a share must be between 0 and 1")
    return array


def _above_0(name: str, values: Any) -> np.ndarray:
    array = np.atleast_1d(np.asarray(values, dtype=float))
    bad = array[~(np.isfinite(array) & (array > 0))]
    if len(bad):
        raise InputError(f"{name} is {bad[0]:g}; it must be above 0 and finite")
    return array


def _priced(cost: Cost, by: str) -> Any:
    """``cost`` over arrays: inf where n is, else checked to be above 0."""

    def price(n: float, other: float) -> float:
        if math.isinf(n):
            return math.inf
        value = float(cost(n, other))
        if not value > 0:
            raise InputError(f"the cost of n = {n:g} at {by} = {other:g} is {value:g}; it must be above 0")
        return value

    return np.vectorize(price, otypes=[float])
