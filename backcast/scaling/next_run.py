"""Which run to make next, and whether to make one at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from backcast.errors import InputError
from backcast.scaling.decisions import MISSED, cheapest, foreseen
from backcast.scaling.inversion import WIDE
from backcast.scaling.law import Law

#: n* past this many times the largest budget counts as never, in what is said of log n*.
FAR = 100.0
#: Never lies this far from the mean of log n*: not to know whether the target can be met, at even chances, weighs as
#: much as a normal 90 % interval that is a factor `WIDE` wide, too wide to be called an answer.
APART = 2 * math.log(WIDE) / 3.29
#: What an example of the data that will be bought costs, unless it is said: so many in a run.
PRICE = 10.0
#: Outcomes simulated for each candidate.
OUTCOMES = 200
#: Sizes proposed, as multiples of the largest budget, and seeds of each.
MULTIPLES, SEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), (1, 2, 3)

Candidate = tuple[float, int] | tuple[float, int, str]


@dataclass(frozen=True)
class NextRun:
    """The candidate that is expected to tell most about n* for its cost.

    Attributes:
        n, seeds: the run to make.
        selector: whose; empty where there is one law.
        cost: in the unit of the cost function.
        sd_now: standard deviation of log n* today, with "never" set `APART` from the rest.
        sd_after: what it is expected to be after the run (root mean variance).
        saving: what the run is expected to save, by a better choice of how much data to buy.
        stop: whether no candidate is expected to save what it costs.
        target: the law's question.
    """

    n: float
    seeds: int
    selector: str
    cost: float
    sd_now: float
    sd_after: float
    saving: float
    stop: bool
    target: float

    def sentence(self) -> str:
        """The advice in plain words."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        whose = f" of {self.selector}" if self.selector else ""
        told = (
            f"the amount of data for {self.target:.4g} is then expected to be known to within a factor "
            f"{math.exp(self.sd_after):.3g}, today {math.exp(self.sd_now):.3g} (one standard deviation)."
        )
        run = f"n = {self.n:,.6g}{whose} with {seeds} (cost {self.cost:,.4g})"
        if self.stop:
            return (
                f"Stop: no run is expected to save what it costs. The most telling is {run}, to save "
                f"{self.saving:,.3g}: {told}"
            )
        return f"Next, run {run}: {told}"


def next_run(
    law: Law | Mapping[str, Law],
    target: float,
    candidates: Iterable[Candidate] | None = None,
    cost: Callable[[float, int], float] = lambda n, seeds: n * seeds,
    price: float = PRICE,
    penalty: float | None = None,
) -> NextRun:
    """The (n, seeds) that shrinks Var(log n*) most per cost, and whether it is worth making.

    For each candidate, outcomes are drawn from the posterior's own curves and noise; each reweights the posterior,
    w_s ∝ N(outcome; f_s(n), v_s), and the variance of log n* under those weights is averaged over the outcomes. Where
    n* may be infinite, with probability 1 - p, that is p · Var(log n* | finite) + p (1 - p) · `APART`².

    The stop rule is the expected value of sample information (Raiffa and Schlaifer 1961). In the end an amount q of
    data will be bought: it costs price · q, and penalty besides if it is not enough. A run saves by as much as the
    least expected cost falls, on average over its outcomes; runs that save less than they cost are left out, and where
    all of them do, ``stop`` says so.

    Of several laws, what is asked is the least n* over them, and what will be bought is the cheapest of all.
    O(candidates · OUTCOMES · draws).

    Args:
        law: one, or several by selector.
        candidates: (n, seeds), for every selector, or (n, seeds, selector); `MULTIPLES` of the largest budget, with
            `SEEDS`, if None.
        cost: of a run of n examples with so many seeds.
        price: of one example of the data that will be bought, in the unit of ``cost``.
        penalty: of missing the target, in that unit; `MISSED` times the price of the data that it is expected to take
            (median of finite n*) if None.

    Raises:
        InputError: without candidates or laws, for an unknown selector, a cost that is not above 0, and a target
            outside the metric's range.
    """
    laws = dict(law) if isinstance(law, Mapping) else {"": law}
    if not laws:
        raise InputError("no laws; give at least one")
    need = {name: one.invert(target).samples for name, one in laws.items()}
    if penalty is None:
        penalty = MISSED * price * _typical(laws, need)
    options = [
        _judged(laws, need, target, n, seeds, name, cost, price, penalty)
        for n, seeds, *names in (_proposed(laws) if candidates is None else candidates)
        for name in names or laws
    ]
    if not options:
        raise InputError("no candidates; give at least one (n, seeds)")
    worth = [option for option in options if option.saving > option.cost]
    best = max(worth or options, key=lambda o: (o.sd_now**2 - o.sd_after**2) / o.cost)
    return replace(best, stop=not worth)


def _proposed(laws: Mapping[str, Law]) -> list[Candidate]:
    """Round sizes about each law's largest budget."""
    return [
        (max(1, round(multiple * law.budgets.n[-1])), seeds, name)
        for name, law in laws.items()
        for multiple in MULTIPLES
        for seeds in SEEDS
    ]


def _typical(laws: Mapping[str, Law], need: Mapping[str, np.ndarray]) -> float:
    """The least median of a selector's finite n*; the largest budget where none is finite."""
    finite = [n[np.isfinite(n)] for n in need.values()]
    return min(
        (float(np.median(n)) for n in finite if len(n)),
        default=max(float(law.budgets.n[-1]) for law in laws.values()),
    )


def _judged(
    laws: Mapping[str, Law],
    need: Mapping[str, np.ndarray],
    target: float,
    n: float,
    seeds: int,
    name: str,
    cost: Callable[[float, int], float],
    price: float,
    penalty: float,
) -> NextRun:
    """What the candidate is expected to tell, and to save."""
    if name not in laws:
        raise InputError(f"no law of {name!r}; choose from {', '.join(laws)}")
    spent = cost(n, seeds)
    if not spent > 0:
        raise InputError(f"the cost of n = {n:g} with {seeds} seeds is {spent:g}; it must be above 0")
    draws = len(need[name])
    true = np.linspace(0, draws - 1, OUTCOMES).round().astype(int)
    weight = np.vstack([np.full(draws, 1 / draws), foreseen(laws[name], n, seeds, true)])
    # What a run tells is taken against the mean of its outcomes: their sampling error cancels, none can unteach.
    weight = np.insert(weight, 1, weight[1:].mean(axis=0), axis=0)
    others = [samples for other, samples in need.items() if other != name]
    rng = np.random.default_rng(0)
    least = np.minimum.reduce([need[name], *(rng.choice(samples, draws) for samples in others)])
    now, before, *after = _variance(least, FAR * max(law.budgets.n[-1] for law in laws.values()), weight)
    elsewhere = [_loss(samples, np.ones((1, len(samples))), price, penalty)[0] for samples in others]
    loss = np.minimum(_loss(need[name], weight, price, penalty), min(elsewhere, default=math.inf))
    return NextRun(
        n=n,
        seeds=seeds,
        selector=name,
        cost=spent,
        sd_now=math.sqrt(now),
        sd_after=math.sqrt(max(0.0, now - (before - float(np.mean(after))))),
        saving=float(loss[1] - loss[2:].mean()),
        stop=False,
        target=target,
    )


def _loss(need: np.ndarray, weight: np.ndarray, price: float, penalty: float) -> np.ndarray:
    """(O,) expected cost of the best amount to buy, and of the risk that it is not enough."""
    return cheapest(need, weight, 0.0, 1, np.full(len(need), price), penalty)[1]


def _variance(need: np.ndarray, far: float, weight: np.ndarray) -> np.ndarray:
    """(O,) variance of log n* under each row of weights, with never `APART` from the mean of the rest."""
    finite = need <= far
    log_n = np.log(np.where(finite, need, 1.0))
    p = weight @ finite
    mean = weight @ (log_n * finite) / np.maximum(p, 1e-300)
    square = weight @ (log_n**2 * finite)
    return np.maximum(square - p * mean**2, 0.0) + p * (1 - p) * APART**2
