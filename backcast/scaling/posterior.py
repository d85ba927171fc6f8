"""One form's posterior: curves given the budgets, and how well they had been foreseen from fewer."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from backcast.scaling.budgets import Budgets
from backcast.scaling.laws import Form
from backcast.scaling.noise import DIM as NOISE_DIM
from backcast.scaling.noise import Noise
from backcast.scaling.sampler import grow
from backcast.scaling.stacking import prefixes

#: Prior of the gain that is left: mean and standard deviation of the logit of its share of the way from the level to
#: the best value, or, when the metric has no best value, of the log of its ratio to the observed spread.
BOUNDED_GAIN, FREE_GAIN = (0.0, 2.5), (0.0, 1.5)
#: Past the data, log n counts e^(DRIFT·ε)-fold, ε ~ N(0, 1) for each curve: what laws do not know of how learning goes
#: on.
DRIFT = 0.12


@dataclass(frozen=True)
class Posterior:
    """S equally likely curves of one form.

    Attributes:
        model: what makes curves of coordinates.
        x: (S, dim) coordinates.
        drift: (S,) factors on log n past the data.
        misfit: (S, K) what lies between the form and the curve at the budgets, in units of the noise's profile; between
            them it is interpolated, and past them it fades with its length.
        scores: for each earlier table, (K - its length,) log densities that it gave to the later budgets' means.
        log_evidence: log p(budgets' means | form), up to a constant that all forms share.
        r_hat: the sampler's potential scale reduction at the largest n and at four times that; 1 when converged.
    """

    model: Model
    x: np.ndarray
    drift: np.ndarray
    misfit: np.ndarray
    scores: tuple[np.ndarray, ...]
    log_evidence: float
    r_hat: float

    def take(self, index: np.ndarray) -> Posterior:
        """Some of the curves."""
        return replace(self, x=self.x[index], drift=self.drift[index], misfit=self.misfit[index])

    @property
    def name(self) -> str:
        """The form's."""
        return self.model.form.name

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def noise(self) -> Noise:
        """Each curve's."""
        return self.model.noise(self.x)

    def curve(self, log_n: np.ndarray) -> np.ndarray:
        """(S, K) values at (K,) log n, lower being better."""
        seen, noise = self.model.log_n, self.noise
        form = self.model.curve(self.x, _drifted(log_n, seen[-1], self.drift))
        right = np.searchsorted(seen, log_n).clip(1, len(seen) - 1)
        share = ((log_n - seen[right - 1]) / (seen[right] - seen[right - 1])).clip(0, 1)
        misfit = (1 - share) * self.misfit[:, right - 1] + share * self.misfit[:, right]
        outside = np.maximum(log_n - seen[-1], 0.0) + np.maximum(seen[0] - log_n, 0.0)
        off = noise.profile_at(np.maximum(log_n, seen[0])) * misfit * noise.kept(outside)
        # A misfit takes away at most nine tenths of the way to the best value.
        return np.maximum(form + off, form - 0.9 * (form - self.model.budgets.best))

    def run_variance(self, log_n: np.ndarray, seeds: int) -> np.ndarray:
        """(S, K) variance of the mean of ``seeds`` fresh runs."""
        return self.noise.fresh(log_n, seeds)

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
        self.law_dim = 2 + len(form.parameters)
        self.dim = self.law_dim + NOISE_DIM
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
            for p, z in zip(
                self.form.parameters, np.split(x[:, 2 : self.law_dim], self.law_dim - 2, axis=1), strict=True
            )
        ]

    def curve(self, x: np.ndarray, log_n: np.ndarray) -> np.ndarray:
        """(S, K) values at log n, (K,) or (S, K)."""
        level, gain = self.level(x)[:, None], self.gain(x)[:, None]
        shape = self.shape(x)
        log_ratio = self.form.log_shape(log_n, *shape) - self.form.log_shape(self.log_n[-1:], *shape)
        return level - gain + gain * np.exp(np.minimum(log_ratio, 60.0))

    def noise(self, x: np.ndarray) -> Noise:
        """The noise hypothesis of each curve."""
        return Noise.of(self.budgets, x[:, self.law_dim :])

    def residual(self, x: np.ndarray) -> np.ndarray:
        """(S, K) of the budgets' means."""
        return self.budgets.mean - self.curve(x, self.log_n)

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """(S, K) log densities of the budgets, each given those before."""
        return self.noise(x).log_density(self.residual(x))


def fit_form(form: Form, budgets: Budgets) -> Posterior:
    """The form's posterior, the same for the same budgets."""
    rng = np.random.default_rng(zlib.crc32(form.name.encode()))
    model = Model(form, budgets)
    ends = prefixes(len(budgets))
    batches = [np.arange(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    scores = []
    populations = grow(model.log_density, np.matmul, batches, model.dim, rng)
    for end, (starts, log_evidence) in zip(ends, populations, strict=True):  # noqa: B007 (the last one is used)
        x = starts.reshape(-1, model.dim)
        drift = np.exp(DRIFT * rng.permutation(norm.ppf((np.arange(len(x)) + 0.5) / len(x))))
        if end < len(budgets):
            scores.append(_foresight(model, x, drift, end))
    misfit = model.noise(x).misfit(model.residual(x), rng)
    return Posterior(model, x, drift, misfit, tuple(scores), log_evidence, _r_hat(model, starts))


def _foresight(model: Model, x: np.ndarray, drift: np.ndarray, end: int) -> np.ndarray:
    """(K - end,) log predictive densities of the later budgets' means, from curves that saw the first ``end``."""
    log_n, noise = model.log_n, model.noise(x)
    misfit, unsure = noise.last_known(model.residual(x)[:, :end])
    kept = noise.kept(log_n[end:] - log_n[end - 1])
    mean = model.curve(x, _drifted(log_n[end:], log_n[end - 1], drift))
    mean += noise.profile_at(log_n[end:]) * kept * misfit[:, None]
    variance = noise.foreseen(end, kept, unsure)
    density = np.exp(-0.5 * (model.budgets.mean[end:] - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    return np.log(np.maximum(density.mean(axis=0), 1e-300))


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
