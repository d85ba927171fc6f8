"""The answer to "how much data for this score?"."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

#: An interval whose ends lie further apart than this factor tells too little to be called an answer.
WIDE = 16.0

Status = Literal["reached", "extrapolated", "unidentified", "unreachable"]


@dataclass(frozen=True)
class Inversion:
    """The distribution of n*, the least n whose expected value meets the target.

    It is told in two parts: whether any amount meets the target, and how much does if one does.

    Attributes:
        target: in the metric's own units.
        level: the interval's probability.
        n: median of n* given that it is finite; inf when it is more likely than not that the target is never met.
        low, high: the central interval of n* given that it is finite; ``high`` is inf where ``n`` is.
        p_unreachable: P(n* = inf), with everything past `backcast.scaling.law.HORIZON` times the largest budget
            counted as never.
        status: ``reached``: n* lies among the observed budgets. ``extrapolated``: past the largest, with finite ends
            at most a factor `WIDE` apart. ``unidentified``: the data do not tell; only ``low`` means something.
            ``unreachable``: p_unreachable is at least ``level``.
        samples: (S,) equally likely n*, with inf among them.
        n_min, n_max: the smallest and the largest observed budget.
        group: the law's.
    """

    target: float
    level: float
    n: float
    low: float
    high: float
    p_unreachable: float
    status: Status
    n_min: float
    n_max: float
    higher_is_better: bool
    group: str = ""
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)

    @classmethod
    def of(
        cls,
        samples: np.ndarray,
        target: float,
        level: float,
        n_min: float,
        n_max: float,
        higher_is_better: bool,
        flat: bool,
        group: str = "",
    ) -> Inversion:
        """Summarise samples of n*; ``flat`` says that the budgets show no progress, so that none can be foreseen."""
        unreachable = float(np.isinf(samples).mean())
        finite = samples[np.isfinite(samples)]
        low = median = high = math.inf
        if len(finite):
            tail = 0.5 * (1.0 - level)
            low, median, high = np.quantile(finite, [tail, 0.5, 1.0 - tail]).tolist()
        if unreachable > 0.5:
            median = high = math.inf
        return cls(
            target=target,
            level=level,
            n=median,
            low=low,
            high=high,
            p_unreachable=unreachable,
            status=_status(median, low, high, unreachable, level, n_max, flat),
            n_min=n_min,
            n_max=n_max,
            higher_is_better=higher_is_better,
            group=group,
            samples=samples,
        )

    def sentence(self) -> str:
        """The answer in plain words."""
        side = "at least" if self.higher_is_better else "at most"
        who = f"{self.group}: " if self.group else ""
        goal = f"{side} {self.target:.4g}"
        never = f"probability that no amount is enough: {_percent(self.p_unreachable)}"
        if_any = "" if self.p_unreachable < 0.005 else "if any amount is enough, "
        low = f"fewer than {_count(self.n_min)}" if self.low < self.n_min else _count(self.low)
        sure = f"{if_any}{_percent(self.level)} interval {low} to {_count(self.high)}"
        if self.status == "unreachable":
            return f"{who}a value of {goal} is out of reach of more data alone ({never})."
        if self.status == "unidentified":
            known = f"from {_count(self.low)} up, with no upper end" if math.isinf(self.high) else f"{sure}"
            return f"{who}the runs so far cannot tell how many examples a value of {goal} takes: {known}; {never}."
        if self.high <= self.n_min:
            return f"{who}a value of {goal} is met already by the smallest budget, {_count(self.n_min)} examples."
        about = f"a value of {goal} takes about {_count(self.n)} examples ({sure})"
        if self.status == "reached":
            return f"{who}{about}, within the budgets already run."
        return f"{who}{about}, {self.n / self.n_max:.2g} times the largest budget run so far; {never}."

    def to_json(self) -> dict[str, Any]:
        """A JSON object; an n that is infinite is null. Without the samples."""
        return {
            "group": self.group,
            "target": self.target,
            "level": self.level,
            "n": _finite(self.n),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "p_unreachable": self.p_unreachable,
            "status": self.status,
            "n_min": self.n_min,
            "n_max": self.n_max,
            "higher_is_better": self.higher_is_better,
            "sentence": self.sentence(),
        }


def _status(
    median: float, low: float, high: float, unreachable: float, level: float, n_max: float, flat: bool
) -> Status:
    if high <= n_max and unreachable <= 1 - level:
        return "reached"
    if flat:
        return "unidentified"
    if unreachable >= level:
        return "unreachable"
    if high > WIDE * low:
        return "unidentified"
    return "reached" if median <= n_max else "extrapolated"


def _finite(n: float) -> float | None:
    return n if math.isfinite(n) else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(n: float) -> str:
    """A number of examples to three digits: 1,230."""
    if math.isinf(n):
        return "no limit"
    rounded = float(f"{n:.3g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
