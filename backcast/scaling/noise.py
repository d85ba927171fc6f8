"""The noise, summed out: a weighted list of hypotheses about it that no curve is needed for.

A budget's mean over its m runs lies around the curve f by

    mean_k ~ N(f(n_k), v_k),     v_k = (n_k/n̄)^(-2h) · (τ² + σ²/m_k) + se_k²,

with σ the noise between runs, which the runs' scatter within budgets also tells (pooled over n, as runs are few), τ
what the runs of one budget share (the subset that they were trained on, and the law's own misfit), h how fast noise
falls with n, n̄ the budgets' geometric mean. None of (σ, τ, h) is put to a point: a grid over them is summed in every
likelihood. As the grid does not depend on the curve, that costs one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.scaling.budgets import Budgets

#: τ in units of the observed spread, and the normal prior of its log.
TAU, TAU_PRIOR = np.geomspace(2e-4, 1.0, 7), (np.log(0.01), 1.2)
#: h and its normal prior.
FALLS, FALL_PRIOR = np.array([0.0, 0.25, 0.5]), (0.25, 0.25)
#: log σ around its pooled estimate, in standard errors of that.
SIGMA = np.array([-1.2, 0.0, 1.2])


@dataclass(frozen=True)
class Noise:
    """T hypotheses for K budgets.

    Attributes:
        variance: (T, K) of the budgets' means.
        log_prior: (T,) up to a constant; holds what the scatter within budgets says.
        tau2, sigma2, falls: (T,) τ² and σ² at n̄, and h.
        log_middle: log n̄.
    """

    variance: np.ndarray
    log_prior: np.ndarray
    tau2: np.ndarray
    sigma2: np.ndarray
    falls: np.ndarray
    log_middle: float

    @classmethod
    def of(cls, budgets: Budgets) -> Noise:
        seeds = budgets.seed_noise
        sigmas = seeds * np.exp(SIGMA / np.sqrt(2 * budgets.freedom)) if seeds > 0 else np.zeros(1)
        tau, sigma, falls = (g.ravel() for g in np.meshgrid(TAU, sigmas, FALLS, indexing="ij"))
        middle = float(budgets.log_n.mean())
        profile = np.exp(-2 * falls[:, None] * (budgets.log_n - middle))
        log_prior = _normal(np.log(tau), *TAU_PRIOR) + _normal(falls, *FALL_PRIOR)
        if seeds > 0:
            within = profile * sigma[:, None] ** 2
            log_prior -= 0.5 * (budgets.scatter / within + (budgets.count - 1) * np.log(within)).sum(axis=1)
        tau2, sigma2 = (tau * budgets.spread) ** 2, sigma**2
        return cls(
            variance=profile * (tau2[:, None] + sigma2[:, None] / budgets.count) + budgets.se**2,
            log_prior=log_prior - log_prior.max(),
            tau2=tau2,
            sigma2=sigma2,
            falls=falls,
            log_middle=middle,
        )

    def log_joint(self, squares: np.ndarray, power: np.ndarray) -> np.ndarray:
        """(T, S) log prior + Σ_k power_k · log N(residual_k; 0, v_tk), from (S, K) squared residuals."""
        constant = self.log_prior - 0.5 * np.log(2 * np.pi * self.variance) @ power
        return constant[:, None] + (-0.5 * power / self.variance) @ squares.T

    def new_run(self, which: np.ndarray, log_n: np.ndarray, seeds: int) -> np.ndarray:
        """(S, K) variance of the mean of ``seeds`` fresh runs at each n, under hypothesis ``which``, (S,)."""
        profile = np.exp(-2 * self.falls[which, None] * (log_n - self.log_middle))
        return profile * (self.tau2 + self.sigma2 / seeds)[which, None]


def _normal(x: np.ndarray, mean: float, sd: float) -> np.ndarray:
    return -0.5 * ((x - mean) / sd) ** 2
