"""The curve without a law: a local trend that fades, of which the latest budgets tell most.

In z = log(y - best) against t = log n (y itself where the metric has no best value),

    dz = v dt,      dv = -v/λ dt + q dW,      z_k observed with variance ω² + (σ²/m_k + se_k²) (dz/dy)²,

the damped local linear trend of structural time series (Harvey 1989, "Forecasting, structural time series models and
the Kalman filter", ch. 2.3 and 6.2.3; Gardner and McKenzie 1985 for the damping), in continuous time. A law that is
wrong at small n is wrong everywhere; this is not, and it may turn. (λ, q, ω) are a grid, summed out exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from backcast.scaling.budgets import Budgets
from backcast.scaling.stacking import prefixes

#: λ in log n; q in slopes per square root of log n; ω in z; all equally likely a priori but for ω and q's size.
LAMBDAS = np.array([2.0, 4.0])
RATES = np.geomspace(0.02, 1.2, 7)
RATE_PRIOR = (math.log(0.07), 0.5)
LUCKS = np.geomspace(5e-4, 0.3, 8)
LUCK_PRIOR = (math.log(0.02), 0.7)
#: Normal prior of the slope at the smallest n.
SLOPE = (-0.2, 0.4)
#: Curves drawn; steps of their paths past the data, near it and far, up to `law.HORIZON`.
DRAWS = 960
PAST = np.concatenate([np.arange(0.1, 3.0, 0.1), np.arange(3.0, 14.0, 0.25)])

#: (z, v, P_zz, P_zv, P_vv): means and covariance, (T,) each.
State = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trend:
    """S equally likely curves, as paths.

    Attributes:
        budgets: what they are of.
        log_n: (G,) the budgets' and those of `PAST`.
        path: (S, G) z.
        luck: (S,) ω.
        scores, log_evidence, r_hat: as of `posterior.Posterior`; the sums are exact, so that r_hat is 1.
    """

    budgets: Budgets
    log_n: np.ndarray
    path: np.ndarray
    luck: np.ndarray
    scores: tuple[np.ndarray, ...]
    log_evidence: float
    r_hat: float = 1.0
    name: str = "trend"

    def __len__(self) -> int:
        return len(self.path)

    def take(self, index: np.ndarray) -> Trend:
        """Some of the curves."""
        return replace(self, path=self.path[index], luck=self.luck[index])

    def curve(self, log_n: np.ndarray) -> np.ndarray:
        """(S, K) values at (K,) log n, lower being better; flat before the first budget."""
        grid, right = self.log_n, np.searchsorted(self.log_n, log_n).clip(1, len(self.log_n) - 1)
        share = ((log_n - grid[right - 1]) / (grid[right] - grid[right - 1])).clip(0.0, 1.0)
        return _value(self.budgets, (1 - share) * self.path[:, right - 1] + share * self.path[:, right])

    def run_variance(self, log_n: np.ndarray, seeds: int) -> np.ndarray:
        """(S, K) variance of the mean of ``seeds`` fresh runs."""
        curve = self.curve(log_n)
        scale = 1.0 if math.isinf(self.budgets.best) else (curve - self.budgets.best) / self.budgets.spread
        luck = self.luck[:, None] * self.budgets.spread * scale
        return luck**2 + self.budgets.seed_noise**2 / seeds + np.zeros_like(curve)


def fit_trend(budgets: Budgets) -> Trend:
    """The posterior, the same for the same budgets."""
    rng = np.random.default_rng(0)
    grid = _Grid(budgets)
    ends = prefixes(len(budgets))
    log_density, states = grid.filter()
    scores = tuple(grid.foresight(log_density, states, end) for end in ends[:-1])
    log_weight = grid.log_prior + log_density.sum(axis=0)
    weight = np.exp(log_weight - log_weight.max())
    comb = (rng.random() + np.arange(DRAWS)) / DRAWS
    chosen = rng.permutation(
        np.searchsorted(np.cumsum(weight) / weight.sum(), comb).clip(max=len(weight) - 1)
    )
    path = grid.paths(states, chosen, rng)
    return Trend(
        budgets,
        np.concatenate([budgets.log_n, budgets.log_n[-1] + PAST]),
        path,
        grid.luck[chosen],
        scores,
        log_evidence=float(log_weight.max() + np.log(weight.sum())),
    )


class _Grid:
    """T hypotheses (λ, q, ω), and Kalman's filter under all of them at once."""

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self.z, slope = _coordinate(budgets)
        damping, rate, luck = (g.ravel() for g in np.meshgrid(LAMBDAS, RATES, LUCKS, indexing="ij"))
        self.damping, self.rate2, self.luck = damping, rate**2, luck
        log_prior = _normal(np.log(rate), *RATE_PRIOR) + _normal(np.log(luck), *LUCK_PRIOR)
        self.log_prior = log_prior - np.log(np.exp(log_prior).sum())
        known = (budgets.seed_noise**2 / budgets.count + budgets.se**2) * slope**2
        self.white = luck**2 + known[:, None]  # (K, T)
        self.jacobian = np.log(np.abs(slope))

    def step(self, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(T,) each: e^(-t/λ) for the slope, its share in z, and the (3, T) covariance of what is new.

        Of the integrated Ornstein-Uhlenbeck process; variances of z, of z with v, of v.
        """
        a = t / self.damping
        kept = np.exp(-a)
        share = self.damping * -np.expm1(-a)
        # λ³ (a - 2(1 - e) + (1 - e²)/2), by its series where it would cancel.
        exact = self.damping**3 * (a + 2 * np.expm1(-a) - 0.5 * np.expm1(-2 * a))
        zz = np.where(a < 1e-2, t**3 / 3 * (1 - 0.75 * a), exact)
        return (
            kept,
            share,
            self.rate2 * np.stack([zz, 0.5 * share**2, -0.5 * self.damping * np.expm1(-2 * a)]),
        )

    def ahead(self, state: State, t: float) -> State:
        """The state (z, v, P_zz, P_zv, P_vv), t later."""
        z, v, zz, zv, vv = state
        kept, share, new = self.step(t)
        return (
            z + share * v,
            kept * v,
            zz + 2 * share * zv + share**2 * vv + new[0],
            kept * (zv + share * vv) + new[1],
            kept**2 * vv + new[2],
        )

    def filter(self) -> tuple[np.ndarray, list[State]]:
        """(K, T) log densities of the budgets' means, each given those before, and the states after each."""
        ones = np.ones(len(self.luck))
        state = (self.z[0] * ones, SLOPE[0] * ones, 1.0 * ones, 0.0 * ones, SLOPE[1] ** 2 * ones)
        density = np.empty((len(self.z), len(ones)))
        states: list[State] = []
        for k in range(len(self.z)):
            if k:
                state = self.ahead(state, float(self.budgets.log_n[k] - self.budgets.log_n[k - 1]))
            z, v, zz, zv, vv = state
            innovation, variance = self.z[k] - z, zz + self.white[k]
            density[k] = _normal_log(innovation, variance) + self.jacobian[k]
            state = (
                z + zz / variance * innovation,
                v + zv / variance * innovation,
                zz - zz**2 / variance,
                zv - zz * zv / variance,
                vv - zv**2 / variance,
            )
            states.append(state)
        return density, states

    def foresight(self, density: np.ndarray, states: list[State], end: int) -> np.ndarray:
        """(K - end,) log predictive densities of the later budgets' means, each from the first ``end``."""
        log_weight = self.log_prior + density[:end].sum(axis=0)
        log_weight = log_weight - np.log(np.exp(log_weight - log_weight.max()).sum()) - log_weight.max()
        found, log_n = [], self.budgets.log_n
        for k in range(end, len(log_n)):
            z, _, zz, _, _ = self.ahead(states[end - 1], float(log_n[k] - log_n[end - 1]))
            each = log_weight + _normal_log(self.z[k] - z, zz + self.white[k])
            found.append(each.max() + np.log(np.exp(each - each.max()).sum()) + self.jacobian[k])
        return np.array(found)

    def paths(self, states: list[State], chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(S, K + len(PAST)) draws of z under the chosen hypotheses: smoothed at the budgets, simulated past them."""
        log_n = self.budgets.log_n
        z, v = _draw([part[chosen] for part in states[-1]], rng)
        last, path = (z, v), [z]
        for k in range(len(states) - 2, -1, -1):  # backward sampling
            state, t = states[k], float(log_n[k + 1] - log_n[k])
            z, v = _draw(_given([part[chosen] for part in state], self._chosen(t, chosen), (z, v)), rng)
            path.append(z)
        path.reverse()
        z, v = last
        for t in np.diff(PAST, prepend=0.0):
            kept, share, new = self._chosen(float(t), chosen)
            luck = _draw([0.0 * z, 0.0 * v, *new], rng)
            z, v = z + share * v + luck[0], kept * v + luck[1]
            path.append(z)
        return np.stack(path, axis=1)

    def _chosen(self, t: float, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kept, share, new = self.step(t)
        return kept[chosen], share[chosen], new[:, chosen]


def _given(
    state: list[np.ndarray],
    step: tuple[np.ndarray, np.ndarray, np.ndarray],
    then: tuple[np.ndarray, np.ndarray],
) -> list[np.ndarray]:
    """The state given the one a step later (Rauch, Tung and Striebel's smoother, for one draw of that)."""
    z, v, zz, zv, vv = state
    kept, share, new = step
    f = np.stack([np.stack([np.ones_like(z), share], -1), np.stack([np.zeros_like(z), kept], -1)], -2)
    p = np.stack([np.stack([zz, zv], -1), np.stack([zv, vv], -1)], -2)
    q = np.stack([np.stack([new[0], new[1]], -1), np.stack([new[1], new[2]], -1)], -2)
    mean = np.stack([z, v], -1)
    foreseen = f @ p @ f.swapaxes(-1, -2) + q + 1e-14 * np.eye(2)
    gain = np.linalg.solve(foreseen, f @ p).swapaxes(-1, -2)
    off = np.stack(then, -1) - (f @ mean[..., None])[..., 0]
    mean = mean + (gain @ off[..., None])[..., 0]
    p = p - gain @ f @ p
    return [mean[:, 0], mean[:, 1], p[:, 0, 0], p[:, 0, 1], p[:, 1, 1]]


def _draw(state: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(z, v) of N(mean, P), one each."""
    z, v, zz, zv, vv = state
    a, b = rng.standard_normal((2, len(z)))
    sd = np.sqrt(np.maximum(zz, 1e-18))
    across = zv / sd
    return z + sd * a, v + across * a + np.sqrt(np.maximum(vv - across**2, 0.0)) * b


def _coordinate(budgets: Budgets) -> tuple[np.ndarray, np.ndarray]:
    """(K,) z of the budgets' means, and dz/dy; without a best value z is y over the spread."""
    if math.isinf(budgets.best):
        return budgets.mean / budgets.spread, np.full(len(budgets), 1.0 / budgets.spread)
    above = np.maximum(budgets.mean - budgets.best, 1e-3 * budgets.spread)
    return np.log(above), 1.0 / above


def _value(budgets: Budgets, z: np.ndarray) -> np.ndarray:
    if math.isinf(budgets.best):
        return budgets.spread * z
    return budgets.best + np.exp(np.minimum(z, 50.0))


def _normal(x: np.ndarray, mean: float, sd: float) -> np.ndarray:
    return -0.5 * ((x - mean) / sd) ** 2


def _normal_log(x: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return -0.5 * (x**2 / variance + np.log(2 * np.pi * variance))
