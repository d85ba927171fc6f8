"""How much data to collect in this round, when later rounds may add to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backcast.errors import InputError
from backcast.scaling.decisions import MISSED, cheapest, foreseen
from backcast.scaling.law import Law

#: Amounts tried for a round that is not the last, and outcomes simulated at each.
AMOUNTS, OUTCOMES = 24, 24
#: With a smaller share of the curves that miss the target where it was missed, the law is taken to be off there.
LEAST = 0.01


@dataclass(frozen=True)
class Round:
    """What to collect now.

    Attributes:
        n: examples to have after this round; those at hand where more would cost more than missing the target.
        collected: examples at hand.
        rounds_left: with this one.
        p_met: probability that n is enough.
        expected_cost: of all that is still to come: data, and the penalty by its probability.
        target: in the metric's own units.
    """

    n: float
    collected: float
    rounds_left: int
    p_met: float
    expected_cost: float
    target: float

    def sentence(self) -> str:
        """The plan in plain words."""
        if self.n <= self.collected:
            return f"Collect no more: the data that {self.target:.4g} may take cost more than missing it."
        further = self.rounds_left - 1
        after = {0: "No round is left to add to them", 1: "One more round can add to them"}.get(
            further, f"{further} more rounds can add to them"
        )
        return (
            f"Collect up to {self.n:,.0f} examples ({self.n - self.collected:,.0f} more), enough for "
            f"{self.target:.4g} with probability {100 * self.p_met:.0f} %. {after}."
        )


def plan_round(
    law: Law,
    target: float,
    rounds_left: int,
    collected: float,
    cost: float | None = None,
    penalty: float | None = None,
) -> Round:
    """How much to have collected after this round, so that data and risk together are expected to cost least.

    In the last round that is a quantile of n*, the newsvendor's (Mahmood et al. 2022, arXiv 2210.01234, theorem 1).
    Before it, every amount is judged by what would then be known: results at it are simulated, each reweighs the
    curves, and the later rounds are planned on what is left (`cheapest`, their equation 4). The paper's own plan does
    without that, and takes later rounds to know no more than this one.

    Unless a cost is given, data are paid in units of n*: the plan minimises the expected ratio of the data collected to
    those needed, plus `MISSED` times the chance of missing the target. Data in vain then count against a far n* no more
    than against a near one, and not at all against an infinite one, which no plan can meet.
    O(AMOUNTS · OUTCOMES · (draws + rounds_left · GRID²)).

    Args:
        law: fitted to what has been seen, with a run at ``collected``.
        target: not met at ``collected``.
        rounds_left: with this one, at least 1.
        collected: examples at hand.
        cost: of one more example.
        penalty: of missing the target after the last round, in the unit of ``cost``; or, without a cost, in units of
            n*, `MISSED` if None.

    Raises:
        InputError: for numbers out of range, a cost without a penalty, and targets outside the metric's range.
    """
    if rounds_left < 1:
        raise InputError(f"rounds_left is {rounds_left}; it counts this round too, so give at least 1")
    if not collected > 0:
        raise InputError(f"collected is {collected:g}; give the number of examples at hand")
    if cost is not None and penalty is None:
        raise InputError("a cost was given without a penalty; give both, in the same unit, or neither")
    if not (cost is None or cost > 0) or not (penalty is None or penalty > 0):
        raise InputError(f"cost {cost} and penalty {penalty} must be above 0")
    need = _need(law, target, collected)
    price = 1.0 / need if cost is None else np.full(len(need), cost)
    penalty = MISSED if penalty is None else penalty
    short = np.flatnonzero(need > collected)
    if rounds_left == 1:
        amount, total = cheapest(need, np.ones((1, len(need))), collected, 1, price, penalty)
        n, expected = float(amount[0]), float(total[0])
    else:
        totals = {collected: penalty} | {
            q: price[short].mean() * (q - collected)
            + (need[short] > q).mean() * _later(law, need, q, rounds_left - 1, price, penalty)
            for q in _amounts(need[short])
        }
        n = min(totals, key=totals.__getitem__)
        expected = float(totals[n])
    return Round(n, collected, rounds_left, float((need[short] <= n).mean()), expected, target)


def _need(law: Law, target: float, collected: float) -> np.ndarray:
    """(S,) n* of the law's curves, some above ``collected``, where the target is known to be missed.

    Where hardly a curve misses it there, the law is off by what its median is too good by, at least: corrected for
    that, the target is met where the law comes to what it promised at ``collected``.
    """
    need = law.invert(target).samples
    if (need > collected).mean() >= LEAST:
        return need
    return law.n_at(float(law.predict(collected, levels=[0.5]).quantiles[0, 0]))


def _amounts(need: np.ndarray) -> list[float]:
    """What this round may end at: n*'s quantiles."""
    finite = np.sort(need[np.isfinite(need)])
    chosen = np.linspace(0, len(finite) - 1, min(AMOUNTS, len(finite))).round().astype(int)
    return np.unique(finite[chosen]).tolist()


def _later(law: Law, need: np.ndarray, n: float, rounds: int, price: np.ndarray, penalty: float) -> float:
    """Expected cost of the later rounds once n was not enough, over what the run at n may show."""
    short = np.flatnonzero(need > n)
    if not len(short):
        return 0.0
    true = short[np.linspace(0, len(short) - 1, min(OUTCOMES, len(short))).round().astype(int)]
    return float(cheapest(need, foreseen(law, n, 1, true), n, rounds, price, penalty)[1].mean())
