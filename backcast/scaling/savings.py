"""How much data one selector saves over another at equal metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from backcast.errors import InputError
from backcast.scaling.inversion import Inversion
from backcast.scaling.law import Law

#: Each law's n* is taken at this many evenly spaced quantiles, and those of the two in all pairs.
QUANTILES = 400
#: Values at which `savings_curve` is read off.
GRID = 17


@dataclass(frozen=True)
class Savings:
    """The distribution of n₂/n₁, the data that the second needs over what the first needs for the same value.

    Above 1 the first saves. It is infinite where the second never reaches the value and the first does, 0 the other
    way round, and undefined where neither does: median and interval are of the cases in which one of them does.

    Attributes:
        first, second: the laws' groups, or "the first" and "the second".
        value: of the metric, which both are to reach.
        level: the interval's probability.
        ratio, low, high: median and central interval of n₂/n₁; nan when it is never defined.
        p_less: P(the first needs less), an infinite n among them; equal ones count half.
        p_infinite: P(the second never reaches the value and the first does).
        p_zero: P(the first never reaches it and the second does).
        p_undefined: P(neither reaches it).
        n_first, n_second: what either needs.
    """

    first: str
    second: str
    value: float
    level: float
    ratio: float
    low: float
    high: float
    p_less: float
    p_infinite: float
    p_zero: float
    p_undefined: float
    n_first: Inversion
    n_second: Inversion

    @property
    def saved(self) -> tuple[float, float, float]:
        """1 - n₁/n₂, the share of the second's data that the first saves: median, low and high; -inf at the least."""
        return _saved(self.ratio), _saved(self.low), _saved(self.high)

    @property
    def told(self) -> bool:
        """Whether the runs tell which of the two needs less: one of them reaches the value, and 1 is left out."""
        return self.p_undefined < 0.5 and not self.low <= 1 <= self.high

    def sentence(self) -> str:
        """The answer in plain words."""
        side = "at least" if self.n_first.higher_is_better else "at most"
        goal = f"a value of {side} {self.value:.4g}"
        if self.p_undefined >= 0.5:
            return (
                f"{self.first} against {self.second}: neither is likely to reach {goal} (probability that neither "
                f"does: {_percent(self.p_undefined)}), so that no saving is defined there."
            )
        if not self.told:
            return (
                f"{self.first} against {self.second}: cannot tell which needs less data for {goal}. {self.second} "
                f"needs {_factor(self.low)} to {_factor(self.high)} times as much as {self.first} "
                f"({_percent(self.level)} interval); probability that {self.first} needs less: {_percent(self.p_less)}."
            )
        names, ratios = (self.first, self.second), (self.ratio, self.low, self.high)
        if self.high < 1:
            names, ratios = names[::-1], (_over(self.ratio), _over(self.high), _over(self.low))
        winner, loser = names
        ratio, low, high = ratios
        if math.isinf(ratio):
            never = max(self.p_infinite, self.p_zero)
            else_needs = "" if math.isinf(low) else f", and needs at least {_factor(low)} times as much data"
            return (
                f"{winner} reaches {goal}; {loser} more likely than not never does (probability {_percent(never)})"
                f"{else_needs}."
            )
        sure = f"{_percent(self.level)} interval {_factor(low)} to {_factor(high)}"
        return (
            f"For {goal} {loser} needs {_factor(ratio)} times as much data as {winner} ({sure}): {winner} saves "
            f"{_percent(_saved(ratio))} ({_percent(_saved(low))} to {_percent(_saved(high))})."
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; a number that is not finite is null."""
        return {
            "first": self.first,
            "second": self.second,
            "value": self.value,
            "level": self.level,
            "ratio": _finite(self.ratio),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "saved": dict(zip(("median", "low", "high"), map(_finite, self.saved), strict=True)),
            "p_less": self.p_less,
            "p_infinite": self.p_infinite,
            "p_zero": self.p_zero,
            "p_undefined": self.p_undefined,
            "told": self.told,
            "n_first": self.n_first.to_json(),
            "n_second": self.n_second.to_json(),
            "sentence": self.sentence(),
        }


def savings(
    a: Law, b: Law, value: float | None = None, n: float | None = None, level: float = 0.9
) -> Savings:
    """Data that selector ``a`` saves over ``b`` at equal metric: n_b/n_a at one value.

    The laws' posteriors are taken as independent: every n* of the one is set against every n* of the other (at
    `QUANTILES` of each), so that the answer depends on no pairing and turns over exactly with its arguments. Runs that
    shared their noise (the same test set, the same seeds) make it too wide, never too narrow.

    Cost: two inversions, and O(QUANTILES²).

    Args:
        a, b: of the same metric.
        value: of the metric.
        n: in its place, b's data; the value is what its curve is expected to reach there. With neither, b's largest
            budget.
        level: the interval's probability.

    Raises:
        InputError: for metrics of different directions or bounds, for both ``value`` and ``n``, and as `Law.invert`.
    """
    _check(a, b)
    if value is not None and n is not None:
        raise InputError(f"savings at value {value:g} and at n = {n:g} are two questions; give one of them")
    if value is None:
        value = float(b.predict(b.budgets.n[-1] if n is None else n).mean[0])
    n_a, n_b = a.invert(value, level), b.invert(value, level)
    log_ratio = np.sort(_log_ratios(n_a.samples, n_b.samples))
    defined = log_ratio[~np.isnan(log_ratio)]
    tail = 0.5 * (1.0 - level)
    return Savings(
        first=a.group or "the first",
        second=b.group or "the second",
        value=value,
        level=level,
        ratio=_quantile(defined, 0.5),
        low=_quantile(defined, tail),
        high=_quantile(defined, 1.0 - tail),
        p_less=float(((log_ratio > 0) + 0.5 * (log_ratio == 0)).mean()),
        p_infinite=float((log_ratio == np.inf).mean()),
        p_zero=float((log_ratio == -np.inf).mean()),
        p_undefined=float(np.isnan(log_ratio).mean()),
        n_first=n_a,
        n_second=n_b,
    )


def savings_curve(a: Law, b: Law, level: float = 0.9) -> list[Savings]:
    """`savings` at `GRID` values, from the worst to the best that both curves pass within their budgets.

    Empty where there is none: one is better at its smallest budget than the other at its largest.

    Raises:
        InputError: as `savings`.
    """
    _check(a, b)
    ends = np.array([law.predict(law.budgets.n[[0, -1]]).mean for law in (a, b)])
    sign = -1.0 if a.higher_is_better else 1.0
    worst, best = (sign * ends[:, 0]).min(), (sign * ends[:, 1]).max()
    if worst <= best:
        return []
    return [savings(a, b, value=float(sign * loss), level=level) for loss in np.linspace(worst, best, GRID)]


def _check(a: Law, b: Law) -> None:
    if a.higher_is_better != b.higher_is_better or a.bounds != b.bounds:
        raise InputError(
            "the two laws differ in the metric's direction or bounds; compare two that were fitted to one metric"
        )


def _log_ratios(n_a: np.ndarray, n_b: np.ndarray) -> np.ndarray:
    """(QUANTILES²,) log n_b/n_a of all pairs; nan where both are infinite."""
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    a, b = (np.log(np.quantile(n, at, method="inverted_cdf")) for n in (n_a, n_b))
    with np.errstate(invalid="ignore"):
        return (b - a[:, None]).ravel()


def _quantile(log_ratio: np.ndarray, share: float) -> float:
    """That of sorted log ratios, as a ratio; between two neighbours only where both are finite, or alike."""
    if not len(log_ratio):
        return math.nan
    place = share * (len(log_ratio) - 1)
    low, high = log_ratio[math.floor(place)], log_ratio[math.ceil(place)]
    return float(np.exp(low if low == high else low + (place - math.floor(place)) * (high - low)))


def _saved(ratio: float) -> float:
    return 1.0 - _over(ratio)


def _over(ratio: float) -> float:
    return 1.0 / ratio if ratio else math.inf


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _factor(ratio: float) -> str:
    return "no limit" if math.isinf(ratio) else f"{ratio:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
