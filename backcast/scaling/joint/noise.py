"""The noise, summed out: a weighted list of hypotheses about it that no curve is needed for.

A cell's mean over its m runs lies around the curve f by

    mean_k ~ N(f_k, v_k),     v_k = p_k² · (τ² + σ²/m_k) + se_k²,     p_k = (y_k/ȳ)^g · (n_k/n̄)^(-h),

with y_k the mean's distance from the best value: over a grid of two inputs a loss may fall a hundredfold, and its noise
with it (g = 1: relative noise; g = 1/2: an error rate's). σ is the noise between runs, which the runs' scatter within
cells tells, τ what the runs of one cell share and the law's own misfit. A grid over σ, τ and (g, h) is summed in every
likelihood; as it does not depend on the curve, that costs one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.scaling.budgets import Budgets

#: τ in units of the observed spread, and the normal prior of its log.
TAU, TAU_PRIOR = np.geomspace(2e-4, 1.0, 7), (np.log(0.01), 1.2)
#: (g, h): how the noise goes with the distance from the best value and with n, equally likely.
FALLS = np.array([(g, h) for g in (0.0, 0.5, 1.0) for h in (0.0, 0.25, 0.5)])
#: log σ around its pooled estimate, in standard errors of that.
SIGMA = np.array([-1.2, 0.0, 1.2])
#: Where the metric has no best value, distances count from this share of the spread below the best mean; and no
#: distance is taken as less than a tenth of that.
BELOW_BEST = 0.1


@dataclass(frozen=True)
class Noise:
    """T hypotheses for K cells.

    Attributes:
        variance: (T, K) of the cells' means.
        log_prior: (T,) up to a constant; holds what the scatter within cells says.
        tau2, sigma2, falls: (T,) τ² and σ², (T, 2) g and h.
        base, least, middle, log_middle: what distances count from, the least of them, ȳ and log n̄.
    """

    variance: np.ndarray
    log_prior: np.ndarray
    tau2: np.ndarray
    sigma2: np.ndarray
    falls: np.ndarray
    base: float
    least: float
    middle: float
    log_middle: float

    @classmethod
    def of(cls, cells: Budgets) -> Noise:
        base = cells.best if np.isfinite(cells.best) else float(cells.mean.min()) - BELOW_BEST * cells.spread
        least = 0.1 * BELOW_BEST * cells.spread
        distance = np.maximum(cells.mean - base, least)
        middle = float(np.exp(np.log(distance).mean()))
        log_middle = float(cells.log_n.mean())
        errors = SIGMA if cells.seed_noise > 0 else np.zeros(1)
        tau, error, which = (
            g.ravel() for g in np.meshgrid(TAU, errors, np.arange(len(FALLS)), indexing="ij")
        )
        falls = FALLS[which]
        profile = _profile(falls, np.log(distance / middle), cells.log_n - log_middle)
        log_prior = -0.5 * ((np.log(tau) - TAU_PRIOR[0]) / TAU_PRIOR[1]) ** 2
        sigma2 = np.zeros(len(tau))
        if cells.seed_noise > 0:
            pooled = (cells.scatter / profile).sum(axis=1) / cells.freedom
            sigma2 = pooled * np.exp(2 * error / np.sqrt(2 * cells.freedom))
            within = profile * sigma2[:, None]
            log_prior -= 0.5 * (cells.scatter / within + cells.free * np.log(within)).sum(axis=1)
        tau2 = (tau * cells.spread) ** 2
        return cls(
            variance=profile * (tau2[:, None] + sigma2[:, None] / cells.count) + cells.se**2,
            log_prior=log_prior - log_prior.max(),
            tau2=tau2,
            sigma2=sigma2,
            falls=falls,
            base=base,
            least=least,
            middle=middle,
            log_middle=log_middle,
        )

    def log_joint(self, squares: np.ndarray, power: np.ndarray) -> np.ndarray:
        """(T, S) log prior + Σ_k power_k · log N(residual_k; 0, v_tk), from (S, K) squared residuals."""
        constant = self.log_prior - 0.5 * np.log(2 * np.pi * self.variance) @ power
        return constant[:, None] + (-0.5 * power / self.variance) @ squares.T

    def new_run(self, which: np.ndarray, curve: np.ndarray, log_n: np.ndarray, seeds: int) -> np.ndarray:
        """(S, K) variance of the mean of ``seeds`` fresh runs around (S, K) curves, under ``which``, (S,)."""
        log_distance = np.log(np.maximum(curve - self.base, self.least) / self.middle)
        profile = _profile(self.falls[which], log_distance, log_n - self.log_middle)
        return profile * (self.tau2 + self.sigma2 / seeds)[which, None]


def _profile(falls: np.ndarray, log_distance: np.ndarray, log_n: np.ndarray) -> np.ndarray:
    """(T, K) p² for (T, 2) of (g, h); ``log_distance`` is (K,) or (T, K)."""
    return np.exp(2.0 * (falls[:, :1] * log_distance - falls[:, 1:] * log_n))
