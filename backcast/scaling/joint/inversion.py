"""The answer to "which n, and how many epochs (which size, which share), for this score at the least cost?"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backcast.scaling.inversion import WIDE, Status

#: Combinations whose costs are within this share of the best one's are called equally good.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Combination:
    """One value of the other input, and the n that it takes.

    Attributes:
        other: the value.
        n, low, high: median and central interval of the least n that meets the target there; may be inf.
        p_unreachable: the probability that none does.
        p_cheapest: the probability that this value is the cheapest of all.
        buy: the least n that meets the target with the probability ``level``; may be inf.
        cost: of ``buy``.
    """

    other: float
    n: float
    low: float
    high: float
    p_unreachable: float
    p_cheapest: float
    buy: float
    cost: float


@dataclass(frozen=True)
class JointInversion:
    """The distribution over the cheapest combination whose expected value meets the target.

    Attributes:
        target: in the metric's own units.
        level: the intervals' probability, and that with which ``best`` meets the target.
        by: the other input's column.
        n, n_low, n_high: median and central interval of the cheapest combination's n; may be inf.
        cost, cost_low, cost_high: of its cost.
        p_unreachable: the probability that no combination on offer meets the target.
        best: the one to buy: of those that meet the target with probability ``level``, the cheapest; None when there
            is none.
        equal: the isoperformance set: combinations that meet it as surely and cost at most `TOLERANCE` more.
        options: every value of the other input on offer, in rising order.
        status: ``reached``: ``best`` lies within the observed n and other input. ``extrapolated``: it does not.
            ``unidentified``: there is none, or the cost's interval is wider than a factor `WIDE`. ``unreachable``:
            p_unreachable is at least ``level``.
        samples: (S, 3) equally likely cheapest combinations: n, other, cost; inf where none meets the target.
    """

    target: float
    level: float
    by: str
    n: float
    n_low: float
    n_high: float
    cost: float
    cost_low: float
    cost_high: float
    p_unreachable: float
    best: Combination | None
    equal: tuple[Combination, ...]
    options: tuple[Combination, ...]
    status: Status
    higher_is_better: bool
    says: Callable[[float], str] = field(repr=False, compare=False)
    samples: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)), repr=False, compare=False)

    @classmethod
    def of(
        cls,
        sizes: np.ndarray,
        others: np.ndarray,
        cost: Callable[[np.ndarray, np.ndarray], np.ndarray],
        target: float,
        level: float,
        by: str,
        higher_is_better: bool,
        seen: tuple[float, float, float],
        says: Callable[[float], str],
    ) -> JointInversion:
        """Summarise (S, O) samples of the least n at each of (O,) other values; ``cost`` takes arrays.

        ``seen``: the largest n and the range of the other input that were observed.
        """
        costs = cost(sizes, others)
        cheapest = costs.argmin(axis=1)
        row = np.arange(len(sizes))
        never = np.isinf(costs).all(axis=1)
        samples = np.stack([sizes[row, cheapest], others[cheapest], costs[row, cheapest]], axis=1)
        tail = 0.5 * (1.0 - level)
        n_low, n, n_high = _quantiles(samples[:, 0], tail)
        cost_low, middle, cost_high = _quantiles(samples[:, 2], tail)

        buy = np.quantile(sizes, level, axis=0, method="inverted_cdf")
        price = cost(buy, others)
        won = np.bincount(cheapest[~never], minlength=len(others)) / len(sizes)
        options = []
        for j, column in enumerate(sizes.T):
            low, median, high = _quantiles(column, tail)
            p_never = float(np.isinf(column).mean())
            options.append(
                Combination(
                    float(others[j]),
                    median,
                    low,
                    high,
                    p_never,
                    won[j].item(),
                    buy[j].item(),
                    price[j].item(),
                )
            )
        best = min(options, key=lambda option: option.cost)
        found = math.isfinite(best.cost)
        equal = [option for option in options if found and option.cost <= (1.0 + TOLERANCE) * best.cost]
        unreachable = float(never.mean())
        within = best.buy <= seen[0] and seen[1] <= best.other <= seen[2]
        return cls(
            target=target,
            level=level,
            by=by,
            n=n,
            n_low=n_low,
            n_high=n_high,
            cost=middle,
            cost_low=cost_low,
            cost_high=cost_high,
            p_unreachable=unreachable,
            best=best if found else None,
            equal=tuple(equal),
            options=tuple(options),
            status=_status(found, within, unreachable, level, cost_high / cost_low),
            higher_is_better=higher_is_better,
            says=says,
            samples=samples,
        )

    @property
    def apart(self) -> float:
        """How far the equally good combinations lie apart: the factor between their largest and smallest n; 1 to inf.

        nan when there is no combination to buy.
        """
        sizes = [option.buy for option in self.equal]
        return max(sizes) / min(sizes) if sizes else math.nan

    def sentence(self) -> str:
        """The answer in plain words."""
        goal = f"{'at least' if self.higher_is_better else 'at most'} {self.target:.4g}"
        sure = f"{100 * self.level:.0f} %"
        never = f"probability that no combination is enough: {100 * self.p_unreachable:.0f} %"
        if self.status == "unreachable":
            return f"A value of {goal} is out of reach of every combination on offer ({never})."
        if self.best is None:
            return f"No combination on offer meets {goal} with a probability of {sure} ({never})."
        text = (
            f"A value of {goal} is bought cheapest with {_count(self.best.buy)} examples at "
            f"{self.says(self.best.other)}, at a cost of {_count(self.best.cost)}, to be {sure} sure of it; the cost "
            f"that it really takes is {_count(self.cost_low)} to {_count(self.cost_high)} ({sure} interval)"
        )
        if len(self.equal) > 1:
            first, last = min(self.equal, key=_size), max(self.equal, key=_size)
            text += (
                f". {len(self.equal)} combinations cost within {100 * TOLERANCE:.0f} % of it, from "
                f"{_count(first.buy)} examples at {self.says(first.other)} to {_count(last.buy)} at "
                f"{self.says(last.other)}"
            )
        kind = {
            "reached": "All of that is within the range already run",
            "extrapolated": "That lies past the range already run",
            "unidentified": "The runs so far tell little: collect more before you pay",
        }[self.status]
        return f"{text}. {kind}; {never}."

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is infinite is null. Without the samples."""
        numbers = ("n", "n_low", "n_high", "cost", "cost_low", "cost_high")
        return {
            "target": self.target,
            "level": self.level,
            "by": self.by,
            **{name: _finite(getattr(self, name)) for name in numbers},
            "p_unreachable": self.p_unreachable,
            "best": None if self.best is None else _json(self.best),
            "equal": [_json(option) for option in self.equal],
            "apart": _finite(self.apart),
            "options": [_json(option) for option in self.options],
            "status": self.status,
            "higher_is_better": self.higher_is_better,
            "sentence": self.sentence(),
        }


def _quantiles(samples: np.ndarray, tail: float) -> tuple[float, float, float]:
    """Low, median and high; an order statistic is never a mixture of a finite value and inf."""
    low, middle, high = np.quantile(samples, [tail, 0.5, 1.0 - tail], method="inverted_cdf").tolist()
    return low, middle, high


def _status(found: bool, within: bool, unreachable: float, level: float, width: float) -> Status:
    if unreachable >= level:
        return "unreachable"
    if not found or not width <= WIDE:
        return "unidentified"
    return "reached" if within else "extrapolated"


def _size(option: Combination) -> float:
    return option.buy


def _json(option: Combination) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in vars(option).items()}


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _count(x: float) -> str:
    """To three digits: 1,230; past 10^15 with an exponent."""
    if math.isinf(x):
        return "no limit"
    rounded = float(f"{x:.3g}")
    if rounded >= 1e15:
        return f"{rounded:.3g}"
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
