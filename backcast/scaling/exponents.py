"""How fast curves fall, compared: exponents, error slopes and which curve leads, each with what is not known of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from backcast.errors import InputError
from backcast.scaling.law import Law

#: Sizes at which curves are set against each other.
GRID = 33

Measure = Literal["exponent", "slope"]


@dataclass(frozen=True)
class Estimate:
    """A number's posterior: median, central interval, and the (S,) draws."""

    median: float
    low: float
    high: float
    samples: np.ndarray = field(repr=False, compare=False)

    @classmethod
    def of(cls, samples: np.ndarray, level: float) -> Estimate:
        """The median and the central interval of probability ``level``."""
        low, median, high = np.quantile(samples, [(1 - level) / 2, 0.5, (1 + level) / 2]).tolist()
        return cls(median, low, high, samples)

    def to_json(self) -> dict[str, float]:
        """Without the draws."""
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Contrast:
    """Two curves' exponents or slopes, one against the other.

    Attributes:
        first, second: the curves.
        measure: what is compared.
        difference: the first's less the second's; None where ``flat`` says why.
        flat: those of the two that show no progress beyond their noise, where nothing can be told for it: of an
            exponent because of one, of a slope because of both.
        level: the interval's probability.
    """

    first: str
    second: str
    measure: Measure
    difference: Estimate | None
    flat: tuple[str, ...]
    level: float

    @property
    def p_larger(self) -> float | None:
        """P(difference > 0)."""
        return None if self.difference is None else float((self.difference.samples > 0).mean())

    @property
    def told(self) -> bool:
        """Whether the runs tell the two apart: the interval leaves out zero."""
        return self.difference is not None and not self.difference.low <= 0 <= self.difference.high

    def sentence(self) -> str:
        """The verdict in plain words."""
        name = "exponent" if self.measure == "exponent" else "error slope"
        pair, d = f"{name}, {self.first} against {self.second}", self.difference
        if d is None:
            return f"{pair}: cannot tell, as {' and '.join(self.flat)} did not improve beyond the noise."
        sure = f"{100 * self.level:.0f} % interval {d.low:+.2g} to {d.high:+.2g}"
        if not self.told:
            return f"{pair}: cannot tell (difference {d.median:+.2g}, {sure})."
        more = "larger" if d.median > 0 else "smaller"
        return f"{name}: {self.first}'s is {more} than {self.second}'s by {abs(d.median):.2g} ({sure})."

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "first": self.first,
            "second": self.second,
            "measure": self.measure,
            "difference": None if self.difference is None else self.difference.to_json(),
            "p_larger": self.p_larger,
            "told": self.told,
            "sentence": self.sentence(),
        }


@dataclass(frozen=True)
class Lead:
    """Which of two curves is better, and where.

    Attributes:
        first, second: the curves.
        n: (K,) sizes, ascending.
        p: (K,) P(the first is better at n).
        p_first, p_second: P(it is better at every one of the sizes).
        level: a lead is told where P is at least (1 + level) / 2, or at most (1 - level) / 2.
    """

    first: str
    second: str
    n: np.ndarray
    p: np.ndarray
    p_first: float
    p_second: float
    level: float

    @property
    def dominates(self) -> str | None:
        """The curve that is better at every size, if the runs tell."""
        for name, p in ((self.first, self.p_first), (self.second, self.p_second)):
            if p >= (1 + self.level) / 2:
                return name
        return None

    def sentence(self) -> str:
        """The verdict in plain words."""
        if winner := self.dominates:
            loser, p = (self.second, self.p_first) if winner == self.first else (self.first, self.p_second)
            return (
                f"{winner} is better than {loser} at every n from {_count(self.n[0])} to {_count(self.n[-1])} "
                f"(P = {p:.2f})."
            )
        sure = (1 + self.level) / 2
        told = [
            f"{name} is better {_where(self.n, p >= sure)} (P at least {sure:.2f} at each n)"
            for name, p in ((self.first, self.p), (self.second, 1 - self.p))
            if (p >= sure).any()
        ]
        if not told:
            return f"{self.first} against {self.second}: cannot tell which is better at any n."
        return f"{self.first} against {self.second}: {'; '.join(told)}."

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "first": self.first,
            "second": self.second,
            "n": self.n.tolist(),
            "p": self.p.tolist(),
            "p_first": self.p_first,
            "p_second": self.p_second,
            "dominates": self.dominates,
            "sentence": self.sentence(),
        }


@dataclass(frozen=True)
class Comparison:
    """Several curves over the range of n that all of them were run in.

    Attributes:
        low, high: that range.
        level: the intervals' probability.
        exponents: curve → see `compare_laws`; without those that show no progress beyond their noise.
        slopes: the same, of all curves; empty where the metric has no best value.
        contrasts: for each pair, of exponents and then of slopes.
        leads: for each pair.
        best: curve → (K,) P(it is the best of all) at the leads' n.
    """

    low: float
    high: float
    level: float
    exponents: Mapping[str, Estimate]
    slopes: Mapping[str, Estimate]
    contrasts: Sequence[Contrast]
    leads: Sequence[Lead]
    best: Mapping[str, np.ndarray]

    def sentences(self) -> list[str]:
        """Every verdict."""
        return [contrast.sentence() for contrast in self.contrasts] + [lead.sentence() for lead in self.leads]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "n": [self.low, self.high],
            "level": self.level,
            "exponents": {name: e.to_json() for name, e in self.exponents.items()},
            "slopes": {name: e.to_json() for name, e in self.slopes.items()},
            "contrasts": [contrast.to_json() for contrast in self.contrasts],
            "leads": [lead.to_json() for lead in self.leads],
            "best": {name: p.tolist() for name, p in self.best.items()},
        }


def compare_laws(laws: Mapping[str, Law], level: float = 0.9) -> Comparison:
    """Compare curves by how fast they fall, between the sizes n₀ < n₁ that all of them were run between.

    The *exponent* of a curve y(n) = c + A s(n) is the mean local exponent of what lies above its floor,

        α = −[log s(n₁) − log s(n₀)] / log(n₁/n₀),

    which for a power law is its b, whatever the range. The floor is not known: α's posterior is what is left when every
    floor and every law that the runs allow has its say. The *slope* puts the metric's best value in the floor's place,

        β = −[log |y(n₁) − y*| − log |y(n₀) − y*|] / log(n₁/n₀),

    and needs no floor: it is known far better, and says less, as a high floor and a small α look alike in it. The
    curves' posteriors are taken as independent.

    Every law here falls with n, so that a flat curve's exponent is whatever its noise allows: it is not given.

    Args:
        laws: name → law, as `fit_law` makes them with ``group``.
        level: the intervals' probability.

    Raises:
        InputError: fewer than two laws, no range in common, or a level outside (0, 1).
    """
    if len(laws) < 2:
        raise InputError(f"there is nothing to compare in {len(laws)} law; give at least two")
    if not 0 < level < 1:
        raise InputError(f"level {level:g} is not a probability; give one between 0 and 1, e.g. 0.9")
    low = max(law.budgets.n[0] for law in laws.values())
    high = min(law.budgets.n[-1] for law in laws.values())
    if not low < high:
        raise InputError(f"the curves of {', '.join(laws)} share no range of n; run them at the same sizes")
    n = np.geomspace(low, high, GRID)
    n[[0, -1]] = low, high  # not past the runs by a rounding
    rng = np.random.default_rng(0)
    drawn = {name: _drawn(law, n, rng) for name, law in laws.items()}
    draws = min(len(exponents) for _, exponents in drawn.values())
    curves = {name: c[:draws] for name, (c, _) in drawn.items()}

    measures: dict[Measure, dict[str, np.ndarray]] = {
        "exponent": {name: exponents[:draws] for name, (_, exponents) in drawn.items()}
    }
    if all(np.isfinite(law.budgets.best) for law in laws.values()):
        measures["slope"] = {
            name: _fall(np.log(curves[name] - law.budgets.best), n) for name, law in laws.items()
        }
    flat = [name for name, law in laws.items() if law.budgets.flat]
    pairs = list(itertools.combinations(laws, 2))
    winners = np.eye(len(laws))[np.stack(list(curves.values())).argmin(axis=0)].mean(axis=0)
    return Comparison(
        low=float(low),
        high=float(high),
        level=level,
        exponents={k: Estimate.of(x, level) for k, x in measures["exponent"].items() if k not in flat},
        slopes={k: Estimate.of(x, level) for k, x in measures.get("slope", {}).items()},
        contrasts=[
            _contrast(a, b, measure, samples, [k for k in flat if k in (a, b)], level)
            for measure, samples in measures.items()
            for a, b in pairs
        ],
        leads=[_lead(a, b, n, curves[a] < curves[b], level) for a, b in pairs],
        best=dict(zip(laws, winners.T, strict=True)),
    )


def _drawn(law: Law, n: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(S, K) curves at n, lower being better, and their (S,) mean local exponents.

    They come form by form: shuffled, those in equal places of two laws are independent.
    """
    log_n = np.log(n)
    curves = np.concatenate([part.curve(log_n) for part in law.form_draws])
    log_s = np.concatenate(
        [p.model.form.log_shape(log_n[[0, -1]], *p.model.shape(p.x)) for p in law.form_draws]
    )
    order = rng.permutation(len(curves))
    return curves[order], _fall(log_s, n)[order]


def _fall(log_error: np.ndarray, n: np.ndarray) -> np.ndarray:
    """(S,) by how much log error falls from the first to the last of n, per unit of log n."""
    return (log_error[:, 0] - log_error[:, -1]) / np.log(n[-1] / n[0])


def _contrast(
    first: str,
    second: str,
    measure: Measure,
    samples: Mapping[str, np.ndarray],
    flat: Sequence[str],
    level: float,
) -> Contrast:
    # The slope of a flat curve is known, about zero; of two such it is the noise that is compared, as no law rises.
    unknown = tuple(flat) if measure == "exponent" or len(flat) == 2 else ()
    difference = None if unknown else Estimate.of(samples[first] - samples[second], level)
    return Contrast(first, second, measure, difference, unknown, level)


def _lead(first: str, second: str, n: np.ndarray, better: np.ndarray, level: float) -> Lead:
    every, none = better.all(axis=1).mean(), (~better).all(axis=1).mean()
    return Lead(first, second, n, better.mean(axis=0), float(every), float(none), level)


def _where(n: np.ndarray, holds: np.ndarray) -> str:
    """The stretches of n in which it holds, in words."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(int)))
    stretches = [(n[a], n[b - 1]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return " and ".join(
        f"at n = {_count(a)}" if a == b else f"from n = {_count(a)} to {_count(b)}" for a, b in stretches
    )


def _count(n: float) -> str:
    return f"{float(f'{n:.3g}'):,.10g}"
