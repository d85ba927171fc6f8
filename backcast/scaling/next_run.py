"""Which run to make next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from backcast.errors import InputError
from backcast.scaling.law import Law

#: n* past this many times the largest budget counts as that in the variance of log n*: all of it is out of reach.
FAR = 100.0
#: Outcomes simulated for each candidate.
OUTCOMES = 200


@dataclass(frozen=True)
class NextRun:
    """The candidate that is expected to tell most about n* for its cost.

    Attributes:
        n, seeds: the run to make.
        cost: in the unit of the cost function.
        sd_now: standard deviation of log n* today.
        sd_after: what it is expected to be after the run (root mean variance).
        target: the law's question.
    """

    n: float
    seeds: int
    cost: float
    sd_now: float
    sd_after: float
    target: float

    def sentence(self) -> str:
        """The advice in plain words."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return (
            f"Next, run n = {self.n:,.6g} with {seeds} (cost {self.cost:,.4g}): the amount of data for "
            f"{self.target:.4g} is then expected to be known to within a factor {math.exp(self.sd_after):.3g}, "
            f"today {math.exp(self.sd_now):.3g} (one standard deviation)."
        )


def next_run(
    law: Law,
    target: float,
    candidates: Iterable[tuple[float, int]],
    cost: Callable[[float, int], float] = lambda n, seeds: n * seeds,
) -> NextRun:
    """The (n, seeds) that shrinks Var(log n*) most per cost.

    For each candidate, outcomes are drawn from the posterior's own curves and noise; each reweights the posterior,
    w_s ∝ N(outcome; f_s(n), v_s), and the variance of log n* under those weights is averaged over the outcomes.

    Raises:
        InputError: without candidates, or for a cost that is not above 0.
    """
    candidates = list(candidates)
    if not candidates:
        raise InputError("no candidates; give at least one pair (n, seeds)")
    log_n = np.log(np.minimum(law.n_at(target), FAR * law.budgets.n[-1]))
    now = float(log_n.var())
    best: NextRun | None = None
    for n, seeds in candidates:
        price = cost(n, seeds)
        if not price > 0:
            raise InputError(f"the cost of n = {n:g} with {seeds} seeds is {price:g}; it must be above 0")
        after = min(now, _variance_after(law, log_n, n, seeds))
        option = NextRun(n, seeds, price, math.sqrt(now), math.sqrt(after), target)
        if best is None or _worth(option) > _worth(best):
            best = option
    assert best is not None
    return best


def _worth(option: NextRun) -> float:
    return (option.sd_now**2 - option.sd_after**2) / option.cost


def _variance_after(law: Law, log_n: np.ndarray, n: float, seeds: int) -> float:
    """Expected variance of log n* once the mean of ``seeds`` runs at n is known."""
    curve, variance = law.curves(n)[:, 0], law.run_variance(n, seeds)[:, 0]
    true = np.linspace(0, len(curve) - 1, OUTCOMES).round().astype(int)
    luck = np.random.default_rng(0).permutation(norm.ppf((np.arange(OUTCOMES) + 0.5) / OUTCOMES))
    outcome = curve[true] + np.sqrt(variance[true]) * luck
    log_weight = -0.5 * ((outcome[:, None] - curve) ** 2 / variance + np.log(variance))
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    mean = weight @ log_n
    return float(np.maximum(weight @ log_n**2 - mean**2, 0.0).mean())
