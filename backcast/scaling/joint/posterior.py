"""One joint form's posterior: curves in n and in the other input, given the cells of a table."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from backcast.scaling.budgets import Budgets
from backcast.scaling.joint.form import Input, JointForm
from backcast.scaling.joint.noise import Noise
from backcast.scaling.laws import Form
from backcast.scaling.sampler import grow
from backcast.scaling.table import Observation

#: Prior of the gain that is left below the best cell: mean and standard deviation of the logit of its share of the way
#: to the best value, or, when the metric has none, of the log of its ratio to the observed spread.
BOUNDED_GAIN, FREE_GAIN = (0.0, 2.5), (0.0, 1.5)
#: Past the data, log n counts e^(DRIFT·ε)-fold, and so does the log of the other input, ε ~ N(0, 1) for each curve.
DRIFT = 0.3
#: Forms are scored on so many growing tables, of which each foresees the cells that come after.
FORESIGHTS = 2
#: Cells at the same value of the other input (and the other way round) whose inputs are nearer than this in their logs
#: count as one: checkpoints of one run are no independent runs.
NEAR = 0.5 * math.log(2.0) - 1e-9


@dataclass(frozen=True)
class Cells:
    """A table's runs put together by (n, other), K cells, lower being better.

    Attributes:
        runs: one entry a cell, sorted by the other input and then by n; its n are not distinct.
        other: (K,) the other input.
        input: what that is.
    """

    runs: Budgets
    other: np.ndarray
    input: Input

    @classmethod
    def of(cls, runs: Sequence[tuple[float, Observation]], input: Input, sign: float, best: float) -> Cells:
        """From (other, run) pairs; ``sign`` and ``best`` as in `Budgets.of`."""
        values = sorted({other for other, _ in runs})
        parts = [Budgets.of([run for z, run in runs if z == other], sign, best) for other in values]
        joined: dict[str, Any] = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Budgets)
            if isinstance(getattr(parts[0], field.name), np.ndarray)
        }
        other = np.repeat(values, [len(part) for part in parts])
        return cls(replace(parts[0], **joined), other, input)

    @property
    def log_n(self) -> np.ndarray:
        return self.runs.log_n

    @cached_property
    def z(self) -> np.ndarray:
        """(K,) the other input as the forms take it."""
        return self.coordinate(self.other)

    def coordinate(self, other: np.ndarray) -> np.ndarray:
        """Values of the other input as the forms take them."""
        if self.input.share:
            return other
        z = np.log(other)
        return z - _middle(np.log(self.other)) if self.input.relative else z

    @cached_property
    def middle(self) -> float:
        """Middle of the observed log n."""
        return _middle(self.log_n)

    @cached_property
    def half_range(self) -> float:
        """Half of what the observed log n range over."""
        return 0.5 * float(np.ptp(self.log_n))

    @cached_property
    def best(self) -> int:
        """The cell with the best mean."""
        return int(self.runs.mean.argmin())

    @cached_property
    def batches(self) -> list[np.ndarray]:
        """The cells in the order in which a law takes them in, from cheap to dear: by n, times what multiplies it.

        The first half of them, then the rest in `FORESIGHTS` parts; what costs the same is never parted.
        """
        dear = (self.log_n + (0.0 if self.input.share else self.z)).round(6)
        ends = np.quantile(dear, np.linspace(0.5, 1.0, FORESIGHTS + 1), method="inverted_cdf")
        part = np.searchsorted(np.unique(ends), dear)
        return [np.flatnonzero(part == i) for i in range(part.max() + 1)]

    @cached_property
    def weight(self) -> np.ndarray:
        """(K,) what each cell counts for in the likelihood: neighbours nearer than `NEAR` share one count."""
        near_n = np.abs(self.log_n[:, None] - self.log_n) < NEAR
        near_z = np.abs(self.z[:, None] - self.z) < (1e-9 if self.input.share else NEAR)
        return 1.0 / (near_n & near_z).sum(axis=1)


class JointModel:
    """A joint form's curves over given cells.

    The columns of x, (S, dim), are standard normal a priori: level (the curve at the best cell), gain (from there down
    to the floor), the joint form's coefficients, the one-dimensional law's parameters.
    """

    def __init__(self, form: JointForm, law: Form, cells: Cells) -> None:
        self.form, self.law, self.cells = form, law, cells
        self.noise = Noise.of(cells.runs)
        self.dim = 2 + len(form.coefficients) + len(law.parameters)
        self._lowest = float(cells.runs.mean[cells.best])
        self._room = max(self._lowest - cells.runs.best, 0.05 * cells.runs.spread)

    def level(self, x: np.ndarray) -> np.ndarray:
        """(S,) the curve at the best cell: its mean, give or take the spread."""
        spread = self.cells.runs.spread
        if math.isinf(self._room):
            return self._lowest + spread * x[:, 0]
        return self.cells.runs.best + self._room * np.exp(min(1.0, spread / self._room) * x[:, 0])

    def gain(self, x: np.ndarray) -> np.ndarray:
        """(S,) from the best cell down to the floor."""
        if math.isinf(self._room):
            mean, sd = FREE_GAIN
            return self.cells.runs.spread * np.exp(mean + sd * x[:, 1])
        mean, sd = BOUNDED_GAIN
        return (self.level(x) - self.cells.runs.best) * expit(mean + sd * x[:, 1])

    def coefficients(self, x: np.ndarray) -> list[np.ndarray]:
        """The joint form's coefficients, (S, 1) each."""
        columns = np.split(x[:, 2 : 2 + len(self.form.coefficients)], len(self.form.coefficients), axis=1)
        return [c.natural(c.mean + c.sd * z) for c, z in zip(self.form.coefficients, columns, strict=True)]

    def shape(self, x: np.ndarray) -> list[np.ndarray]:
        """The logs of the law's parameters, (S, 1) each; places on the n axis count from the middle."""
        columns = np.split(x[:, 2 + len(self.form.coefficients) :], len(self.law.parameters), axis=1)
        return [
            p.mean + (p.sd + self.cells.half_range * p.place) * z
            for p, z in zip(self.law.parameters, columns, strict=True)
        ]

    def curve(self, x: np.ndarray, log_n: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(S, K) values at log n and coordinates z, (K,) or (S, K) each."""
        level, gain = self.level(x)[:, None], self.gain(x)[:, None]
        coefficients, shape, best = self.coefficients(x), self.shape(x), self.cells.best

        def log_s(log_n: np.ndarray, z: np.ndarray) -> np.ndarray:
            return self.law.log_shape(
                self.form.log_effective(log_n - self.cells.middle, z, *coefficients), *shape
            )

        log_ratio = log_s(log_n, z) - log_s(self.cells.log_n[best : best + 1], self.cells.z[best : best + 1])
        return level - gain + gain * np.exp(np.minimum(log_ratio, 60.0))

    def drifted(
        self, x: np.ndarray, log_n: np.ndarray, z: np.ndarray, drift: np.ndarray, seen: np.ndarray
    ) -> np.ndarray:
        """`curve`, where steps past the largest inputs of the cells ``seen`` are ``drift`` times as long, (S, 2)."""
        log_n = _further(log_n, self.cells.log_n[seen].max(), drift[:, :1])
        if not self.cells.input.share:
            z = _further(z, self.cells.z[seen].max(), drift[:, 1:])
        return self.curve(x, log_n, z)

    def squares(self, x: np.ndarray) -> np.ndarray:
        """(S, K) squared residuals of the cells' means."""
        return (self.curve(x, self.cells.log_n, self.cells.z) - self.cells.runs.mean) ** 2

    def log_likelihood(self, squares: np.ndarray, power: np.ndarray) -> np.ndarray:
        """(S,) with the noise summed out; ``power`` (K,) tempers the cells."""
        joint = self.noise.log_joint(squares, power * self.cells.weight)
        top = joint.max(axis=0)
        return top + np.log(np.exp(joint - top).sum(axis=0))

    def hypotheses(self, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """(T, S) probabilities of the noise hypotheses given each curve and the cells ``seen``."""
        power = np.zeros(len(self.cells.other))
        power[seen] = self.cells.weight[seen]
        joint = self.noise.log_joint(self.squares(x), power)
        weight = np.exp(joint - joint.max(axis=0))
        return weight / weight.sum(axis=0)


@dataclass(frozen=True)
class JointPosterior:
    """S equally likely curves of one joint form.

    Attributes:
        model: what makes curves of coordinates.
        x: (S, dim) coordinates.
        drift: (S, 2) factors on log n and on the log of the other input past the data.
        hypothesis: (S,) which of the model's noise hypotheses goes with each curve.
        scores: for each earlier table, the log densities that it gave to the later cells' means.
        log_evidence: log p(cells' means | form), up to a constant that all forms share.
        r_hat: the sampler's potential scale reduction at the best cell and at four times its n.
    """

    model: JointModel
    x: np.ndarray
    drift: np.ndarray
    hypothesis: np.ndarray
    scores: tuple[np.ndarray, ...]
    log_evidence: float
    r_hat: float

    @property
    def name(self) -> str:
        """Of the joint form and of the law that its effective data go into."""
        return f"{self.model.form.name}, {self.model.law.name}"

    def take(self, index: np.ndarray) -> JointPosterior:
        """Some of the curves."""
        return replace(self, x=self.x[index], drift=self.drift[index], hypothesis=self.hypothesis[index])

    def curve(self, log_n: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(S, K) values, lower being better, at log n, (K,) or (S, K), and (K,) values of the other input."""
        cells = self.model.cells
        everything = np.arange(len(cells.other))
        return self.model.drifted(self.x, log_n, cells.coordinate(other), self.drift, everything)

    def run_variance(self, log_n: np.ndarray, other: np.ndarray, seeds: int) -> np.ndarray:
        """(S, K) variance of the mean of ``seeds`` fresh runs."""
        return self.model.noise.new_run(self.hypothesis, self.curve(log_n, other), log_n, seeds)

    def log_n_at(self, value: float, other: np.ndarray, low: float, high: float) -> np.ndarray:
        """(S, O) log n at which each curve comes down to ``value`` at each (O,) other; ``low`` at the least, else inf.

        By bisection: all curves fall with n. O(50 · S · O).
        """
        a, b = np.full((len(self.x), len(other)), low), np.full((len(self.x), len(other)), high)
        never = self.curve(b, other) > value
        for _ in range(50):
            middle = 0.5 * (a + b)
            above = self.curve(middle, other) > value
            a, b = np.where(above, middle, a), np.where(above, b, middle)
        return np.where(never, np.inf, b)

    def parameters(self) -> dict[str, np.ndarray]:
        """(S,) each: floor, the joint form's coefficients, and the law's own parameters, lower being better.

        In the units in which the forms take their inputs: log n, and a size's log, count from the middle of those
        observed.
        """
        m = self.model
        return {
            "floor": m.level(self.x) - m.gain(self.x),
            **{c.name: v[:, 0] for c, v in zip(m.form.coefficients, m.coefficients(self.x), strict=True)},
            **{p.name: np.exp(v[:, 0]) for p, v in zip(m.law.parameters, m.shape(self.x), strict=True)},
        }


def fit_form(form: JointForm, law: Form, cells: Cells) -> JointPosterior:
    """The form's posterior, the same for the same cells."""
    rng = np.random.default_rng(zlib.crc32(f"{form.name}, {law.name}".encode()))
    model, batches, scores = JointModel(form, law, cells), cells.batches, []
    populations = grow(model.squares, model.log_likelihood, batches, model.dim, rng)
    for i, (starts, log_evidence) in enumerate(populations, 1):  # noqa: B007 (the last one is used)
        x = starts.reshape(-1, model.dim)
        steps = norm.ppf((np.arange(len(x)) + 0.5) / len(x))
        drift = np.exp(DRIFT * np.stack([rng.permutation(steps), rng.permutation(steps)], axis=1))
        if i < len(batches):
            scores.append(
                _foresight(model, x, drift, np.concatenate(batches[:i]), np.concatenate(batches[i:]))
            )
    chance = model.hypotheses(x, np.arange(len(cells.other))).cumsum(axis=0)
    hypothesis = (chance < rng.random(len(x))).sum(axis=0).clip(max=len(chance) - 1)
    return JointPosterior(model, x, drift, hypothesis, tuple(scores), log_evidence, _r_hat(model, starts))


def _foresight(
    model: JointModel, x: np.ndarray, drift: np.ndarray, seen: np.ndarray, later: np.ndarray
) -> np.ndarray:
    """Log predictive densities of the later cells' means, from curves that saw the others."""
    cells = model.cells
    curve = model.drifted(x, cells.log_n[later], cells.z[later], drift, seen)
    squares = (curve - cells.runs.mean[later]) ** 2
    variance, chance = model.noise.variance[:, later], model.hypotheses(x, seen)
    density = np.zeros(len(later))
    for v, weight in zip(variance, chance, strict=True):
        density += weight @ (np.exp(-0.5 * squares / v) / np.sqrt(2 * np.pi * v))
    return np.log(np.maximum(density / len(x), 1e-300))


def _middle(log: np.ndarray) -> float:
    return 0.5 * float(log.min() + log.max())


def _further(log: np.ndarray, last: float, drift: np.ndarray) -> np.ndarray:
    """(S, K) what a curve is read off at: beyond ``last``, steps are ``drift`` times as long, (S, 1)."""
    return np.minimum(log, last) + drift * np.maximum(log - last, 0.0)


def _r_hat(model: JointModel, starts: np.ndarray) -> float:
    """Gelman and Rubin's √(1 + B/W) over the starts, (STARTS, S, dim), at the best cell and four times its n."""
    cells = model.cells
    log_n = cells.log_n[cells.best] + np.log([1.0, 4.0])
    curves = model.curve(starts.reshape(-1, model.dim), log_n, cells.z[[cells.best] * 2])
    curves = curves.reshape(*starts.shape[:2], 2)
    between, within = curves.mean(axis=1).var(axis=0, ddof=1), curves.var(axis=1).mean(axis=0)
    return float(np.sqrt(1.0 + between / (within + (1e-3 * cells.runs.spread) ** 2)).max())
