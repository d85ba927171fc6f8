"""What runs scatter by around a law: luck of each run, and a misfit that neighbouring sizes share.

A budget's mean over its m runs lies around the curve f by

    mean_k = f(n_k) + g_k (u(log n_k) + e_k),     g_k = (n_k/n̄)^(-h),
    u an Ornstein-Uhlenbeck process of standard deviation τ and length ℓ in log n,
    e_k ~ N(0, ω² + σ²/m_k) + N(0, se_k²)/g_k²,

with σ the noise between runs, which the runs' scatter within budgets also tells; ω what the runs of one budget share,
such as the subset that they were trained on; τ and ℓ the law's own misfit and whatever else neighbouring sizes share
(the same splits, one training run measured many times), without which a hundred dense points would pass for a hundred
independent ones; h how fast noise falls with n; n̄ the budgets' geometric mean. All five are coordinates of the
posterior, beside the law's own. The likelihood is a Kalman filter's, O(K) a curve (Hartikainen and Särkkä 2010, "Kalman
filtering and smoothing solutions to temporal Gaussian process regression models").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from backcast.scaling.budgets import Budgets

#: Normal priors (mean, standard deviation) of log τ and log ω in units of the spread, of log ℓ, of h, and of log σ
#: around its pooled estimate.
TAU, OMEGA = (np.log(0.015), 1.2), (np.log(0.01), 1.2)
LENGTH, FALL, SIGMA = (np.log(1.0), 0.5), (0.25, 0.25), (0.0, 0.7)

#: Coordinates that a noise takes: log τ, log ω, log ℓ, h, log σ.
DIM = 5


@dataclass(frozen=True)
class Noise:
    """S hypotheses for K budgets; all but ``budgets`` are (S,).

    Attributes:
        tau2, omega2, sigma2: variances at n̄.
        length: of the misfit, in log n.
        fall: h.
    """

    budgets: Budgets
    tau2: np.ndarray
    omega2: np.ndarray
    sigma2: np.ndarray
    length: np.ndarray
    fall: np.ndarray

    @classmethod
    def of(cls, budgets: Budgets, x: np.ndarray) -> Noise:
        """From (S, `DIM`) coordinates that are standard normal a priori."""
        tau, omega, length, fall, sigma = (
            mean + sd * z for (mean, sd), z in zip((TAU, OMEGA, LENGTH, FALL, SIGMA), x.T, strict=True)
        )
        return cls(
            budgets,
            tau2=(budgets.spread * np.exp(tau)) ** 2,
            omega2=(budgets.spread * np.exp(omega)) ** 2,
            sigma2=(budgets.seed_noise * np.exp(sigma)) ** 2,
            length=np.exp(length),
            fall=fall,
        )

    @cached_property
    def log_profile(self) -> np.ndarray:
        """(K, S) log g."""
        return -self.fall * (self.budgets.log_n - self.budgets.log_n.mean())[:, None]

    @cached_property
    def white(self) -> np.ndarray:
        """(K, S) variances of a budget's own luck, over g²."""
        budgets = self.budgets
        own = self.omega2 + self.sigma2 / budgets.count[:, None]
        return own + (budgets.se**2)[:, None] * np.exp(-2 * self.log_profile) if budgets.se.any() else own

    def profile_at(self, log_n: np.ndarray) -> np.ndarray:
        """(S, K) g at any sizes."""
        return np.exp(-self.fall[:, None] * (log_n - self.budgets.log_n.mean()))

    def kept(self, distance: np.ndarray) -> np.ndarray:
        """(S, K) correlation of the misfit with that at ``distance`` in log n."""
        return np.exp(-distance / self.length[:, None])

    def log_density(self, residual: np.ndarray) -> np.ndarray:
        """(S, K) log p(mean_k, scatter_k | those before), up to a constant, from the means' residuals (S, K)."""
        innovation, variance, _, _ = self._filter(residual)
        found = -0.5 * (innovation**2 / variance + np.log(2 * np.pi * variance)) - self.log_profile
        budgets = self.budgets
        if budgets.seed_noise > 0:
            # Over its density under the pooled noise, which every law's evidence then leaves out.
            log_ratio = 2 * self.log_profile + np.log(self.sigma2 / budgets.seed_noise**2)
            excess = (budgets.scatter / budgets.seed_noise**2)[:, None] * np.expm1(-log_ratio)
            found -= 0.5 * (excess + budgets.free[:, None] * log_ratio)
        return found.T

    def _filter(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Kalman's, over the (S, k) residuals of the first k budgets; all over g.

        Returns:
            (k, S) each: innovations and their variances; the misfit's mean and variance once a budget is known.
        """
        r = residual.T / np.exp(self.log_profile[: residual.shape[1]])
        innovation, variance, means, unsure = (np.empty_like(r) for _ in range(4))
        kept = np.exp(-np.diff(self.budgets.log_n)[: len(r) - 1, None] / self.length)
        m, p = np.zeros(len(residual)), self.tau2
        for k, white in enumerate(self.white[: len(r)]):
            if k:
                m = kept[k - 1] * m
                p = self.tau2 + kept[k - 1] ** 2 * (p - self.tau2)
            innovation[k] = r[k] - m
            variance[k] = p + white
            gain = p / variance[k]
            means[k] = m = m + gain * innovation[k]
            unsure[k] = p = gain * white
        return innovation, variance, means, unsure

    def misfit(self, residual: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(S, K) a draw of u at the budgets given the residuals, by forward filtering and backward sampling."""
        _, _, means, unsure = self._filter(residual)
        kept = np.exp(-np.diff(self.budgets.log_n)[:, None] / self.length)
        path = np.empty_like(means)
        path[-1] = means[-1] + np.sqrt(unsure[-1]) * rng.standard_normal(len(residual))
        for k in range(len(kept) - 1, -1, -1):
            p = unsure[k]
            gain = kept[k] * p / (self.tau2 + kept[k] ** 2 * (p - self.tau2))
            mean = means[k] + gain * (path[k + 1] - kept[k] * means[k])
            path[k] = mean + np.sqrt(np.maximum(p - gain * kept[k] * p, 0.0)) * rng.standard_normal(len(mean))
        return path.T

    def last_known(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S,) mean and variance of the misfit at the last of the (S, k) residuals, k budgets in."""
        _, _, means, unsure = self._filter(residual)
        return means[-1], unsure[-1]

    def foreseen(self, end: int, kept: np.ndarray, unsure: np.ndarray) -> np.ndarray:
        """(S, K - end) variances of the later means; the misfit was known to ``unsure``, (S,), at the last before."""
        misfit = self.tau2[:, None] + kept**2 * (unsure - self.tau2)[:, None]
        return np.exp(2 * self.log_profile[end:].T) * (misfit + self.white[end:].T)

    def fresh(self, log_n: np.ndarray, seeds: int) -> np.ndarray:
        """(S, K) variance of the mean of ``seeds`` fresh runs around the curve, with the misfit past the budgets."""
        past = np.maximum(log_n - self.budgets.log_n[-1], 0.0)
        new = self.tau2[:, None] * (1.0 - self.kept(past) ** 2)
        return self.profile_at(log_n) ** 2 * (new + (self.omega2 + self.sigma2 / seeds)[:, None])
