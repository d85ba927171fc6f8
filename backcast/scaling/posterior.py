"""One form's posterior: curves given the budgets, and how well they had been foreseen from fewer."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from backcast.scaling.budgets import Budgets
from backcast.scaling.laws import Form
from backcast.scaling.noise import Noise
from backcast.scaling.sampler import grow

#: Prior of the gain that is left: mean and standard deviation of the logit of its share of the way from the level to
#: the best value, or, when the metric has no best value, of the log of its ratio to the observed spread.
BOUNDED_GAIN, FREE_GAIN = (0.0, 2.5), (0.0, 1.5)
#: Past the data, log n counts e^(DRIFT·ε)-fold, ε ~ N(0, 1) for each curve: what laws do not know of how learning goes
#: on.
DRIFT = 0.3
#: Laws are scored on at most this many earlier tables.
PREFIXES = 4


@dataclass(frozen=True)
class Posterior:
    """S equally likely curves of one form.

    Attributes:
        model: what makes curves of coordinates.
        x: (S, dim) coordinates.
        drift: (S,) factors on log n past the data.
        hypothesis: (S,) which of the model's noise hypotheses goes with each curve.
        scores: for each earlier table, (K - its length,) log densities that it gave to the later budgets' means.
        log_evidence: log p(budgets' means | form), up to a constant that all forms share.
        r_hat: the sampler's potential scale reduction at the largest n and at four times that; 1 when converged.
    """

    model: Model
    x: np.ndarray
    drift: np.ndarray
    hypothesis: np.ndarray
    scores: tuple[np.ndarray, ...]
    log_evidence: float
    r_hat: float

    def take(self, index: np.ndarray) -> Posterior:
        """Some of the curves."""
        return replace(self, x=self.x[index], drift=self.drift[index], hypothesis=self.hypothesis[index])

    def curve(self, log_n: np.ndarray) -> np.ndarray:
        """(S, K) values at (K,) log n, lower being better."""
        return self.model.curve(self.x, _drifted(log_n, self.model.log_n[-1], self.drift))

    def run_variance(self, log_n: np.ndarray, seeds: int) -> np.ndarray:
        """(S, K) variance of the mean of ``seeds`` fresh runs."""
        return self.model.noise.new_run(self.hypothesis, log_n, seeds)

    def log_n_at(self, value: float, low: float, high: float) -> np.ndarray:
        """(S,) log n at which each curve comes down to ``value``: ``low`` at the least, inf past ``high``."""
        last = self.model.log_n[-1]
        log_n = self.model.log_n_at(self.x, value, low, last + self.drift * (high - last))
        return np.minimum(log_n, last) + np.maximum(log_n - last, 0.0) / self.drift

    def parameters(self) -> dict[str, np.ndarray]:
        """(S,) each: floor, amplitude and the shape's own, in natural units, lower being better."""
        shape = self.model.shape(self.x)
        gain = self.model.gain(self.x)
        log_s = self.model.form.log_shape(self.model.log_n[-1:], *shape)[:, 0]
        names = (p.name for p in self.model.form.parameters)
        return {
            "floor": self.model.level(self.x) - gain,
            "amplitude": gain * np.exp(-log_s),
            **{name: np.exp(column[:, 0]) for name, column in zip(names, shape, strict=True)},
        }


class Model:
    """A form's curves over given budgets.

    The columns of x, (S, dim), are standard normal a priori: level (the curve at the largest n), gain (from there down
    to the floor), then the shape's parameters. Data pin a level and a gain far better than a floor and an amplitude.
    """

    def __init__(self, form: Form, budgets: Budgets) -> None:
        self.form, self.budgets = form, budgets
        self.noise = Noise.of(budgets)
        self.dim = 2 + len(form.parameters)
        self.log_n = budgets.log_n
        self._middle = 0.5 * (self.log_n[0] + self.log_n[-1])
        self._half_range = 0.5 * (self.log_n[-1] - self.log_n[0])
        self._room = max(budgets.mean[-1] - budgets.best, 0.05 * budgets.spread)

    def level(self, x: np.ndarray) -> np.ndarray:
        """(S,) the curve at the largest n: the last mean, give or take the spread."""
        spread = self.budgets.spread
        if math.isinf(self._room):
            return self.budgets.mean[-1] + spread * x[:, 0]
        return self.budgets.best + self._room * np.exp(min(1.0, spread / self._room) * x[:, 0])

    def gain(self, x: np.ndarray) -> np.ndarray:
        """(S,) from the largest n down to the floor."""
        if math.isinf(self._room):
            mean, sd = FREE_GAIN
            return self.budgets.spread * np.exp(mean + sd * x[:, 1])
        mean, sd = BOUNDED_GAIN
        return (self.level(x) - self.budgets.best) * expit(mean + sd * x[:, 1])

    def shape(self, x: np.ndarray) -> list[np.ndarray]:
        """The logs of the shape's parameters, (S, 1) each."""
        return [
            self._middle + p.mean + (p.sd + self._half_range) * z if p.place else p.mean + p.sd * z
            for p, z in zip(self.form.parameters, np.split(x[:, 2:], self.dim - 2, axis=1), strict=True)
        ]

    def curve(self, x: np.ndarray, log_n: np.ndarray) -> np.ndarray:
        """(S, K) values at log n, (K,) or (S, K)."""
        level, gain = self.level(x)[:, None], self.gain(x)[:, None]
        shape = self.shape(x)
        log_ratio = self.form.log_shape(log_n, *shape) - self.form.log_shape(self.log_n[-1:], *shape)
        return level - gain + gain * np.exp(np.minimum(log_ratio, 60.0))

    def log_n_at(self, x: np.ndarray, value: float, low: float, high: np.ndarray) -> np.ndarray:
        """(S,) log n at which the curves come down to ``value``, by bisection from ``low`` to ``high``, else inf."""
        shape, gain = self.shape(x), self.gain(x)
        share = np.maximum((value - (self.level(x) - gain)) / gain, 0.0)
        with np.errstate(divide="ignore"):
            wanted = np.log(share) + self.form.log_shape(self.log_n[-1:], *shape)[:, 0]

        def above(log_n: np.ndarray) -> np.ndarray:
            return self.form.log_shape(log_n[:, None], *shape)[:, 0] > wanted

        a, b = np.full(len(x), low), high
        never = above(high)
        for _ in range(50):
            middle = 0.5 * (a + b)
            before = above(middle)
            a, b = np.where(before, middle, a), np.where(before, b, middle)
        return np.where(never, np.inf, b)

    def squares(self, x: np.ndarray) -> np.ndarray:
        """(S, K) squared residuals of the budgets' means."""
        return (self.curve(x, self.log_n) - self.budgets.mean) ** 2

    def log_likelihood(self, squares: np.ndarray, power: np.ndarray) -> np.ndarray:
        """(S,) with the noise summed out; ``power`` (K,) tempers the budgets."""
        joint = self.noise.log_joint(squares, power)
        top = joint.max(axis=0)
        return top + np.log(np.exp(joint - top).sum(axis=0))

    def hypotheses(self, x: np.ndarray, power: np.ndarray) -> np.ndarray:
        """(T, S) probabilities of the noise hypotheses given each curve."""
        joint = self.noise.log_joint(self.squares(x), power)
        weight = np.exp(joint - joint.max(axis=0))
        return weight / weight.sum(axis=0)


def fit_form(form: Form, budgets: Budgets) -> Posterior:
    """The form's posterior, the same for the same budgets."""
    rng = np.random.default_rng(zlib.crc32(form.name.encode()))
    model = Model(form, budgets)
    ends = prefixes(len(budgets))
    batches = [np.arange(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    scores = []
    populations = grow(model.squares, model.log_likelihood, batches, model.dim, rng)
    for end, (starts, log_evidence) in zip(ends, populations, strict=True):  # noqa: B007 (the last one is used)
        x = starts.reshape(-1, model.dim)
        drift = np.exp(DRIFT * rng.permutation(norm.ppf((np.arange(len(x)) + 0.5) / len(x))))
        if end < len(budgets):
            scores.append(_foresight(model, x, drift, end))
    chance = model.hypotheses(x, np.ones(len(budgets))).cumsum(axis=0)
    hypothesis = (chance < rng.random(len(x))).sum(axis=0).clip(max=len(chance) - 1)
    return Posterior(model, x, drift, hypothesis, tuple(scores), log_evidence, _r_hat(model, starts))


def prefixes(budgets: int) -> list[int]:
    """Lengths of the growing tables that a law is fitted to: 2, 3, ... up to all, thinned to `PREFIXES` + 1."""
    first = max(2, math.ceil(budgets / 3))
    return sorted(
        set(np.linspace(first, budgets, min(PREFIXES, budgets - first) + 1).round().astype(int).tolist())
    )


def _foresight(model: Model, x: np.ndarray, drift: np.ndarray, end: int) -> np.ndarray:
    """(K - end,) log predictive densities of the later budgets' means, from curves that saw the first ``end``."""
    seen = (np.arange(len(model.log_n)) < end).astype(float)
    curve = model.curve(x, _drifted(model.log_n[end:], model.log_n[end - 1], drift))
    squares = (curve - model.budgets.mean[end:]) ** 2
    variance = model.noise.variance[:, end:]
    density = np.exp(-0.5 * squares[:, None, :] / variance) / np.sqrt(2 * np.pi * variance)
    mean = np.einsum("ts,stk->k", model.hypotheses(x, seen), density) / len(x)
    return np.log(np.maximum(mean, 1e-300))


def _drifted(log_n: np.ndarray, last: float, drift: np.ndarray) -> np.ndarray:
    """(S, K) the log n at which a law is read off: beyond ``last``, steps are ``drift`` times as long."""
    past = np.maximum(log_n - last, 0.0)
    return np.minimum(log_n, last) + drift[:, None] * past


def _r_hat(model: Model, starts: np.ndarray) -> float:
    """Gelman and Rubin's √(1 + B/W) over the starts, (STARTS, S, dim), at n_max and 4·n_max; the larger."""
    log_n = model.log_n[-1] + np.log([1.0, 4.0])
    curves = model.curve(starts.reshape(-1, model.dim), log_n).reshape(*starts.shape[:2], 2)
    between, within = curves.mean(axis=1).var(axis=0, ddof=1), curves.var(axis=1).mean(axis=0)
    return float(np.sqrt(1.0 + between / (within + (1e-3 * model.budgets.spread) ** 2)).max())
