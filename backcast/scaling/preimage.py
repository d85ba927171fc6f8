"""The preimage of a score: which inputs, selectors with amounts of data, give the same metric.

A score is a function of the input; the inverse problem has as many answers as inputs that the function takes there.
Whether they can be told apart by the score is the first check that the theory asks for (arXiv 2509.07909, inverse
problems over training data): vary selector and budget, hold the metric constant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from backcast.errors import InputError
from backcast.scaling.law import BELOW, Law

#: An input that gives the score with at least this probability is named.
NAMED = 0.5

#: The rows that a selector chose, by the size of its subset.
Chosen = Mapping[str, Mapping[float, Collection[Hashable]]]


@dataclass(frozen=True)
class Input:
    """One selector's amounts of data that give the score.

    Attributes:
        selector: the curve.
        p: probability that it gives the score at some n.
        n: median of n*, where the expected metric is the score itself; inf when it is more likely never met.
        low, high: every n between them may give a score within the tolerance: where its curve comes into that band,
            low end of the central interval, and where it leaves it, high end; inf when it may never leave.
        width: median factor between coming and leaving.
    """

    selector: str
    p: float
    n: float
    low: float
    high: float
    width: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is infinite is null."""
        finite = {name: _finite(getattr(self, name)) for name in ("n", "low", "high", "width")}
        return {"selector": self.selector, "p": self.p, **finite}


@dataclass(frozen=True)
class Preimage:
    """The inputs that give a score, and how far apart they are.

    Attributes:
        target: the score, tolerance: scores this near to it count as the same, in the metric's units.
        level: the intervals' probability.
        inputs: by selector, those with the least n first.
        same: pair of named selectors → P(their scores, each at its own n, lie within the tolerance of each other).
        shared: pair of named selectors → Jaccard index of what they chose, at the sizes nearest to their n.
        factors: (S,) draws of the factor between the n* of the first and of the last of the named inputs; at least 1,
            inf where the last never meets the score.
    """

    target: float
    tolerance: float
    level: float
    higher_is_better: bool
    inputs: Sequence[Input]
    same: Mapping[tuple[str, str], float]
    shared: Mapping[tuple[str, str], float]
    factors: np.ndarray = field(repr=False, compare=False)

    @cached_property
    def named(self) -> list[Input]:
        """The inputs that give the score more likely than not."""
        return _named(self.inputs)

    @property
    def factor(self) -> float:
        """Between the least and the largest n of the named inputs; 1 for one input, nan for none."""
        return self.named[-1].n / self.named[0].n if self.named else math.nan

    @property
    def factor_ends(self) -> tuple[float, float]:
        """The central interval of the factor between these two inputs; its upper end may be inf."""
        tail = 0.5 * (1.0 - self.level)
        if not self.named:
            return math.nan, math.nan
        return _quantile(self.factors, tail), _quantile(self.factors, 1.0 - tail)

    def sentence(self) -> str:
        """The answer in plain words."""
        score, among = f"A score of {self.target:.4g}", f"{len(self.named)} of {len(self.inputs)} selectors"
        if not self.named:
            return f"{score} is more likely than not given by none of the {len(self.inputs)} selectors."
        first, last = self.named[0], self.named[-1]
        if len(self.named) == 1:
            start = f"only by {first.selector}, " if len(self.inputs) > 1 else ""
            return (
                f"{score} is given {start}at about {_count(first.n)} examples; within ±{self.tolerance:.2g} of it, any "
                f"amount {_range(first.low, first.high)} may give it."
            )
        low, high = self.factor_ends
        sure = f"{100 * self.level:.0f} % interval {_factor(low)} to {_factor(high)}"
        told = (
            f"{score} is given by {among}, from {_count(first.n)} examples ({first.selector}) to {_count(last.n)} "
            f"({last.selector}): a factor {_factor(self.factor)} ({sure})"
        )
        if self.shared:
            least, most = min(self.shared.values()), max(self.shared.values())
            share = f"{100 * least:.0f} %" if least == most else f"{100 * least:.0f} to {100 * most:.0f} %"
            told += f"; of the examples that two of them chose, {share} are shared"
        return f"{told}. The score alone does not tell the data."

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is infinite or not defined is null."""
        low, high = self.factor_ends
        return {
            "target": self.target,
            "tolerance": self.tolerance,
            "level": self.level,
            "selectors": len(self.inputs),
            "named": [each.selector for each in self.named],
            "inputs": [each.to_json() for each in self.inputs],
            "factor": _finite(self.factor),
            "factor_low": _finite(low),
            "factor_high": _finite(high),
            "same": [{"pair": list(pair), "p": p} for pair, p in self.same.items()],
            "shared": [{"pair": list(pair), "jaccard": share} for pair, share in self.shared.items()],
            "sentence": self.sentence(),
        }


def preimage(
    laws: Mapping[str, Law],
    target: float,
    tolerance: float | None = None,
    level: float = 0.9,
    chosen: Chosen | None = None,
) -> Preimage:
    """Find the inputs (selector × n) that give the same score.

    A selector's curve f gives the score where |f(n) - target| ≤ tolerance: from where it first comes that near,
    n*(target - tolerance) if higher is better, to where it first goes beyond, n*(target + tolerance). The selectors'
    posteriors are taken as independent. O(S M²) for S draws of M laws.

    Args:
        laws: selector → law, as `fit_law` makes them with ``group``.
        target: the score, in the metric's own direction.
        tolerance: by default one run's noise, the root mean square over the selectors at their n*.
        level: the intervals' probability.
        chosen: for selectors, the ids or positions of the rows that they chose, by size.

    Raises:
        InputError: no laws, laws of metrics with different directions or ranges, a target outside the range, a negative
            tolerance, or a level outside (0, 1).
    """
    _check(laws, target, tolerance, level)
    higher = next(iter(laws.values())).higher_is_better
    rng = np.random.default_rng(0)
    samples = {name: law.n_at(target) for name, law in laws.items()}
    size = min(map(len, samples.values()))
    # They come form by form: shuffled, those in equal places of two laws are independent.
    order = {name: rng.permutation(len(n))[:size] for name, n in samples.items()}
    at = {name: n[order[name]] for name, n in samples.items()}
    median = {name: _quantile(n, 0.5) for name, n in samples.items()}
    if tolerance is None:
        tolerance = _noise(laws, median)
    sign = 1.0 if higher else -1.0
    inputs = []
    for name, law in laws.items():
        comes, leaves = (law.n_at(target + side * sign * tolerance) for side in (-1.0, 1.0))
        inputs.append(_input(name, law, samples[name], comes, leaves, level))
    inputs.sort(key=lambda each: (each.n, each.selector))
    named = _named(inputs)
    pairs = list(itertools.combinations([each.selector for each in named], 2))
    values = {each.selector: laws[each.selector].curves(each.n)[order[each.selector], 0] for each in named}
    return Preimage(
        target=target,
        tolerance=tolerance,
        level=level,
        higher_is_better=higher,
        inputs=inputs,
        same={(a, b): float((np.abs(values[a] - values[b]) <= tolerance).mean()) for a, b in pairs},
        shared=_shared(pairs, median, chosen or {}),
        factors=_factors(at[named[0].selector], at[named[-1].selector]) if named else np.zeros(0),
    )


def _check(laws: Mapping[str, Law], target: float, tolerance: float | None, level: float) -> None:
    if not laws:
        raise InputError("there are no laws to find inputs of; give at least one")
    ranges = {(law.higher_is_better, law.bounds) for law in laws.values()}
    if len(ranges) > 1:
        raise InputError(
            "the laws are of metrics with different directions or ranges; give those of one metric"
        )
    ((_, (low, high)),) = ranges
    if not (math.isfinite(target) and low <= target <= high):
        raise InputError(
            f"target {target:g} is outside the metric's range {low:g} to {high:g}; give one inside it"
        )
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise InputError(
            f"tolerance {tolerance:g} is no distance between scores; give one that is at least 0"
        )
    if not 0 < level < 1:
        raise InputError(f"level {level:g} is not a probability; give one between 0 and 1, e.g. 0.9")


def _noise(laws: Mapping[str, Law], n: Mapping[str, float]) -> float:
    """One run's standard deviation, within the budgets, at the n nearest to n*: root mean square over the laws."""
    variances = [
        np.median(law.run_variance(float(np.clip(n[name], law.budgets.n[0], law.budgets.n[-1]))))
        for name, law in laws.items()
    ]
    return float(np.sqrt(np.mean(variances)))


def _input(name: str, law: Law, n: np.ndarray, comes: np.ndarray, leaves: np.ndarray, level: float) -> Input:
    """A selector's input, of the draws that meet the score and have not done so below any n that is looked at."""
    gives = np.isfinite(n) & (n > 1.001 * BELOW * law.budgets.n[0])
    tail = 0.5 * (1.0 - level)
    if not gives.any():
        return Input(name, 0.0, _quantile(n, 0.5), math.inf, math.inf, math.nan)
    comes, leaves = comes[gives], leaves[gives]
    return Input(
        name,
        float(gives.mean()),
        _quantile(n, 0.5),
        _quantile(comes, tail),
        _quantile(leaves, 1.0 - tail),
        _quantile(leaves / comes, 0.5),
    )


def _named(inputs: Sequence[Input]) -> list[Input]:
    return [each for each in inputs if each.p >= NAMED and math.isfinite(each.n)]


def _factors(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(S,) last over first, at least 1.

    Not the largest over the least of all the inputs in each draw: of many inputs that are each known poorly some
    are always far apart by chance.
    """
    finite = np.isfinite(last) & np.isfinite(first)
    with np.errstate(invalid="ignore"):
        return np.where(finite, np.maximum(last / first, 1.0), np.where(np.isfinite(last), 1.0, np.inf))


def _shared(
    pairs: Sequence[tuple[str, str]], n: Mapping[str, float], chosen: Chosen
) -> dict[tuple[str, str], float]:
    """Jaccard indices, for the pairs whose rows are both known."""
    rows = {
        name: set(by_size[min(by_size, key=lambda size: abs(math.log(size / n[name])))])
        for name, by_size in chosen.items()
        if by_size and math.isfinite(n.get(name, math.inf))
    }
    return {
        (a, b): len(rows[a] & rows[b]) / (len(rows[a] | rows[b]) or 1)
        for a, b in pairs
        if a in rows and b in rows
    }


def _quantile(samples: np.ndarray, quantile: float) -> float:
    """An order statistic, which is never a mixture of a finite n and inf."""
    return float(np.quantile(samples, quantile, method="inverted_cdf"))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _factor(value: float) -> str:
    return "no limit" if math.isinf(value) else f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def _range(low: float, high: float) -> str:
    return f"from {_count(low)} up" if math.isinf(high) else f"from {_count(low)} to {_count(high)}"


def _count(n: float) -> str:
    """A number of examples to three digits: 1,230."""
    rounded = float(f"{n:.3g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
