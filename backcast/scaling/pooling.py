"""Partial pooling: curves of the same model, task and metric under several selectors inform each other.

Each group g has its own posterior, a cloud of curves fitted apart under the prior π_g. Two numbers mean the same in all
groups and under all laws: φ₁, the floor, and φ₂ = s(4n)/s(n), what is left, at four times the largest budget, of what
lay above the floor (4^(-b) for a power law). The hierarchical prior of a curve is

    p(θ | μ, τ) = π_g(θ) · [(1 - ε) N(φ(θ); μ, τ²) / Z_g(μ, τ) + ε],     Z_g = ∫ π_g(θ) N(φ(θ); μ, τ²) dθ,

a normal population that a group belongs to with probability 1 - ε; else it is alone, with the prior that it was fitted
under. No curve is fitted again: p/π_g reweights the cloud, and (μ, τ), one pair for each of the two numbers, is summed
over a grid. See Gelman et al. 2013, "Bayesian data analysis", ch. 5, for the hierarchy, and Robert and Casella 2004,
"Monte Carlo statistical methods", ch. 3, for the weights.

What the laws do not know goes wrong in all groups at once: every curve of a task that takes off late looks flat before.
So the other groups together count as one, with the geometric mean of their evidence, however many they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm, qmc

from backcast.errors import InputError
from backcast.scaling.law import Law
from backcast.scaling.posterior import Model, Posterior

#: τ, in units of how far all groups' curves together lie apart; equally likely.
SPREADS = np.array([0.1, 0.2, 0.4, 0.8, 1.6])
#: Steps of the grid over μ, in the same units: two of the least τ leave no gaps.
STEP = 0.2
#: ε, the chance that a group is alone.
ALONE = 0.2
#: How far past the largest budget the curves' shapes are compared.
AHEAD = 4.0
#: Draws of each form's prior.
PRIOR_DRAWS = 512
#: Weights are flattened until this share of a group's curves is effective.
KEPT = 0.1


def pool(laws: Mapping[str, Law]) -> dict[str, Law]:
    """The groups' laws, each with its curves and its forms reweighted by what the other groups say.

    Groups without progress beyond their noise neither give nor take: their floor and a start still to come look alike.
    The laws stay independent of each other given the data: that they now share a floor is in each, not between them.

    Cost: O(G·S·H²) time, in matrix products, and O(S·H + G·H²) memory for G groups of S curves and H ≈ 150 points of
    either grid; about 0.1 s a group.

    Args:
        laws: group → law, as `fit_law` makes them with ``group``; curves for which a common floor makes sense.

    Returns:
        The same groups in the same order; unchanged where fewer than two of them show progress.

    Raises:
        InputError: for metrics of different directions or bounds.
    """
    if len({(law.higher_is_better, law.bounds) for law in laws.values()}) > 1:
        raise InputError(
            f"the groups {', '.join(laws)} differ in the metric's direction or bounds; pool curves of one metric"
        )
    names = sorted(name for name, law in laws.items() if not law.budgets.flat)
    if len(names) < 2:
        return dict(laws)
    last = max(laws[name].budgets.log_n[-1] for name in names)
    clouds = [_Cloud.of(laws[name], last) for name in names]
    axes = [_Axis.over(clouds, i) for i in range(2)]

    fits = [_Fit.of(cloud, axes) for cloud in clouds]
    hyperprior = _hyperprior([fit.prior for fit in fits], axes)
    gains = [np.log(fit.gain) for fit in fits]
    pooled = dict(laws)
    for name, cloud, fit, own in zip(names, clouds, fits, gains, strict=True):
        others = (sum(gains) - own) / (len(names) - 1)
        log_chance = np.log(hyperprior) + own + others
        chance = np.exp(log_chance - log_chance.max())
        chance /= chance.sum()
        pooled[name] = _reweighted(laws[name], _guarded(cloud.weight, fit.ratio(cloud, axes, chance)))
    return pooled


@dataclass(frozen=True)
class _Cloud:
    """A group's curves, all forms together.

    Attributes:
        weight: (S,) adding up to 1.
        phi: (S, 2) what the groups share.
        prior: (R, 2) the same of draws from the prior that the group was fitted under.
    """

    weight: np.ndarray
    phi: np.ndarray
    prior: np.ndarray

    @classmethod
    def of(cls, law: Law, last: float) -> _Cloud:
        parts = law.posteriors
        forms = 1.0 - law.weights[law.trend.name]
        return cls(
            weight=np.concatenate([np.full(len(p), law.weights[p.name] / forms / len(p)) for p in parts]),
            phi=np.concatenate([_shared(p.model, p.x, last) for p in parts]),
            prior=np.concatenate([_shared(p.model, _prior(p.model.dim), last) for p in parts]),
        )


def _shared(model: Model, x: np.ndarray, last: float) -> np.ndarray:
    """(S, 2) floor, and what is left above it at e^last · `AHEAD` of what there was at e^last."""
    log_s = model.form.log_shape(last + np.log([1.0, AHEAD]), *model.shape(x))
    return np.stack([model.level(x) - model.gain(x), np.exp(log_s[:, 1] - log_s[:, 0])], axis=1)


def _prior(dim: int) -> np.ndarray:
    """(`PRIOR_DRAWS`, dim) standard normal draws, evenly spread: Sobol points in the middle of their cells."""
    return norm.ppf(qmc.Sobol(dim, scramble=False).random(PRIOR_DRAWS) + 0.5 / PRIOR_DRAWS)


@dataclass(frozen=True)
class _Axis:
    """The grid of (μ, τ) for one of the shared numbers, and the scale on which that is normal.

    Attributes:
        which: the number's column.
        middle, unit: median and half the central 68 % of all groups' curves together; φ is taken as
            asinh((φ - middle)/unit), as an open floor has a long tail.
        mu, tau: (H,) points, τ by τ.
    """

    which: int
    middle: float
    unit: float
    mu: np.ndarray
    tau: np.ndarray

    @classmethod
    def over(cls, clouds: Sequence[_Cloud], which: int) -> _Axis:
        phi = np.concatenate([cloud.phi[:, which] for cloud in clouds])
        weight = np.concatenate([cloud.weight for cloud in clouds]) / len(clouds)
        order = np.argsort(phi, kind="stable")
        at = np.searchsorted(weight[order].cumsum(), [0.01, 0.16, 0.5, 0.84, 0.99]).clip(max=len(phi) - 1)
        first, low, middle, high, last = phi[order][at].tolist()
        unit = max(0.5 * (high - low), 1e-9 * abs(middle), 1e-12)
        ends = np.arcsinh((np.array([first, last]) - middle) / unit)
        mu = np.arange(ends[0], ends[1] + STEP, STEP)
        return cls(which, middle, unit, np.tile(mu, len(SPREADS)), np.repeat(SPREADS, len(mu)))

    def kernel(self, phi: np.ndarray) -> np.ndarray:
        """(S, H) the population's density, up to a constant of each (μ, τ)."""
        scaled = np.arcsinh((phi[:, self.which, None] - self.middle) / self.unit)
        return np.exp(-0.5 * ((scaled - self.mu) / self.tau) ** 2)


@dataclass(frozen=True)
class _Fit:
    """How a group goes with each pair of points of the two axes, (H₁, H₂).

    Attributes:
        prior: Z, the kernels' mean over the prior.
        gain: p(the group's data | the pair) / p(the group's data | alone).
    """

    prior: np.ndarray
    gain: np.ndarray

    @classmethod
    def of(cls, cloud: _Cloud, axes: Sequence[_Axis]) -> _Fit:
        before, after = ([axis.kernel(phi) for axis in axes] for phi in (cloud.prior, cloud.phi))
        # The least that the draws can tell: a population that the prior all but rules out is no better than that.
        prior = np.maximum(before[0].T @ before[1] / len(cloud.prior), 1e-3 / len(cloud.prior))
        likelihood = (after[0] * cloud.weight[:, None]).T @ after[1]
        return cls(prior, (1 - ALONE) * likelihood / prior + ALONE)

    def ratio(self, cloud: _Cloud, axes: Sequence[_Axis], chance: np.ndarray) -> np.ndarray:
        """(S,) p(curve | all groups) / p(curve | this group), from the (H₁, H₂) probabilities of the pairs."""
        each = chance / self.gain
        first, second = (axis.kernel(cloud.phi) for axis in axes)
        member = ((first @ (each / self.prior)) * second).sum(axis=1)
        return (1 - ALONE) * member + ALONE * each.sum()


def _hyperprior(priors: Sequence[np.ndarray], axes: Sequence[_Axis]) -> np.ndarray:
    """(H₁, H₂) prior of the pairs: any τ alike and, given that, μ as likely as the groups' own priors have it.

    So that one group alone would be left as it is: Σ_h p(h) N(φ; h)/Z(h) is then the same for every φ.
    """
    grid = (len(SPREADS), -1)
    shape = [axis.mu.reshape(grid).shape[1] for axis in axes]
    z = np.mean(priors, axis=0).reshape(len(SPREADS), shape[0], len(SPREADS), shape[1])
    return (z / z.sum(axis=(1, 3), keepdims=True)).reshape(priors[0].shape)


def _guarded(weight: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """(S,) weight · ratio^t, with t ≤ 1 as large as `KEPT` allows: too few curves are no posterior."""
    t, total = 1.0, 1.0 / (weight**2).sum()
    while True:
        pooled = weight * ratio**t
        pooled /= pooled.sum()
        if 1.0 / (pooled**2).sum() >= KEPT * total:
            return pooled
        t *= 0.8


def _reweighted(law: Law, weight: np.ndarray) -> Law:
    """The law with its curves drawn anew by ``weight``, (S,): systematic resampling, form by form."""
    posteriors: list[Posterior] = []
    weights = {law.trend.name: law.weights[law.trend.name]}  # a trend has no floor to share
    forms = 1.0 - weights[law.trend.name]
    ends = np.cumsum([len(p) for p in law.posteriors])
    for p, part in zip(law.posteriors, np.split(weight, ends[:-1]), strict=True):
        comb = (np.arange(len(part)) + 0.5) / len(part) * part.sum()
        posteriors.append(p.take(np.searchsorted(part.cumsum(), comb).clip(max=len(part) - 1)))
        weights[p.name] = forms * float(part.sum())
    return replace(law, posteriors=posteriors, weights=weights)
