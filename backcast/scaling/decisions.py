"""What the advice rests on: what runs might show, and what being wrong about the amount of data costs."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from backcast.scaling.law import Law

#: What missing the target costs, unless it is said: so many times the data that meeting it takes.
MISSED = 8.0
#: Amounts of data that a plan chooses from.
GRID = 80


def foreseen(law: Law, n: float, seeds: int, true: np.ndarray) -> np.ndarray:
    """(O, S) posterior weights of the law's curves after each of O simulated runs at n.

    Outcome o is drawn from curve ``true[o]`` and its noise, y_o ~ N(f(n), v), and weighs every curve s by
    N(y_o; f_s(n), v_s). O(O·S).
    """
    curve, variance = law.curves(n)[:, 0], law.run_variance(n, seeds)[:, 0]
    luck = np.random.default_rng(0).permutation(norm.ppf((np.arange(len(true)) + 0.5) / len(true)))
    outcome = curve[true] + np.sqrt(variance[true]) * luck
    log_weight = -0.5 * ((outcome[:, None] - curve) ** 2 / variance + np.log(variance))
    weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def cheapest(
    need: np.ndarray, weight: np.ndarray, start: float, rounds: int, price: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """The amount to have after the next round, and the expected cost from here on, for O distributions of n*.

    With q_0 = start ≤ q_1 ≤ ... ≤ q_T the amounts after each round, each collected only if the one before was not
    enough (Mahmood et al. 2022, arXiv 2210.01234, equation 4), given that n* > start,

        min over q of  E[Σ_t price · (q_t - q_{t-1}) · 1{n* > q_{t-1}} + penalty · 1{n* > q_T}],

    solved exactly over a grid of n*'s quantiles, by dynamic programming from the last round. The last round alone is a
    newsvendor's: a quantile of n*. q_1 = start says that more data is not worth its price. O(O · rounds · GRID²).

    Args:
        need: (S,) n*, some of them above ``start``; inf where no amount is enough.
        weight: (O, S) of the samples; where none above ``start`` has any, nothing more is to be paid.
        price: (S,) of one example where that is what it takes.

    Returns:
        q_1 and the cost, (O,) each.
    """
    later = np.sort(need[(need > start) & np.isfinite(need)])
    thinned = later[np.unique(np.linspace(0, len(later) - 1, min(GRID, len(later))).round().astype(int))]
    grid = np.concatenate([[start], thinned])
    short = need[:, None] > grid
    missed, paid = weight @ short, weight @ (short * price[:, None])
    paid, missed = (m / np.maximum(missed[:, :1], 1e-300) for m in (paid, missed))
    step = np.subtract.outer(grid, grid).T
    ahead = penalty * missed
    for left in range(rounds, 0, -1):
        here = slice(None) if left > 1 else slice(1)  # the first round starts at ``start``
        total = step[here] * paid[:, here, None] + ahead[:, None, :]
        total[:, step[here] < 0] = np.inf
        best, ahead = total.argmin(axis=2), total.min(axis=2)
    return grid[best[:, 0]], ahead[:, 0]
