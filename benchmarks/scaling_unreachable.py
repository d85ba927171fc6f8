"""Targets that no amount of data meets: does p_unreachable tell them from those that are met further on?

**Synthetic** truths are known: a power law, a Hill curve or a stretched exponential, seen at 8 sizes of 3 seeds until
2-15 % of its gain is left; *saturated*; *dipping* by a bump on the way; or *noisy*. Unreachable is a target below the
floor by 10-20 % of the gain and three noises at least. Reachable is what the curve comes to 2, 4 or 8 times further on,
if that is better than the last size by the noise of its mean.

**Real** curves end, so that a target past their best is not proved out of reach. Asked are those (of LCDB's and all
others) whose last third lies flat: a line in log n through its means, going on at the steepest slope that they allow
(95 %), takes more than `FAR` times the largest n to come to the target, which is `MARGIN` noises below the best mean of
the whole curve. The law sees the curve up to the middle of that third. *dipping*, *saturated* and *noisy* (one run's
noise above `NOISY` of the means' spread) and *flat* (no better at its end than at its start) are said of the part
that it sees. Reachable are the cases of scaling_intervals.

*AUROC*: of p_unreachable, of one kind of unreachable targets against all reachable ones. *called finite, is not*: of
all answers with a finite upper end and p_unreachable below `SURE`, the share whose target is out of reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from common import Row
from scaling_curves import FEWEST, REACHES, Curve
from scaling_fits import Fitted, Question, answer, fitted, row
from scaling_intervals import chosen, fits_of, fresh
from scipy.optimize import brentq
from scipy.stats import linregress
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from backcast.scaling import Observation

#: Synthetic truths of each kind; real curves that have settled, at most.
TRUTHS, SETTLED = 20, 60
KINDS = ("saturated", "dipping", "noisy", "flat")
SIZES, SEEDS, FIRST = 8, 3, 50.0
#: Of real curves: noises that a target lies past the best mean; least factor that the largest n is away from it.
MARGIN, FAR, NOISY = 5.0, 100.0, 0.1
#: p_unreachable of an answer that is called finite with confidence.
SURE = 0.05


@dataclass(frozen=True)
class Said:
    """What was said of a target: p_unreachable, and whether it was called finite with confidence."""

    kinds: frozenset[str]
    reachable: bool
    p: float
    called: bool


def unreachable(curves: Sequence[Curve], quick: bool, workers: int) -> list[Row]:
    made = synthetic(2 if quick else TRUTHS, workers)
    real = settled(curves, 2 if quick else SETTLED, workers) + met(curves, quick, workers)
    return [
        row
        for source, said in (("synthetic", made), ("real", real), ("all", made + real))
        for row in rows_of(source, said)
    ]


def rows_of(source: str, said: Sequence[Said]) -> list[Row]:
    rows = []
    reachable = [one for one in said if one.reachable]
    for kind in (*KINDS, "all"):
        these = [one for one in said if not one.reachable and (kind in one.kinds or kind == "all")]
        if these and reachable:
            both = [*these, *reachable]
            auroc = roc_auc_score([not one.reachable for one in both], [one.p for one in both])
            note = f"{len(these)} unreachable, {len(reachable)} reachable"
            rows.append(
                row("unreachable", "law", source, kind, "AUROC", float(auroc), cases=len(both), note=note)
            )
    called = [one for one in said if one.called]
    wrong = sum(not one.reachable for one in called)
    share = wrong / len(called) if called else None
    note = f"{wrong} of {len(called)}; {len(said) - len(reachable)} of all {len(said)} are out of reach"
    return [
        *rows,
        row(
            "unreachable", "law", source, "all", "called finite, is not", share, cases=len(called), note=note
        ),
    ]


def judged(fit: Fitted, at: int, kinds: frozenset[str], reachable: bool) -> Said:
    found = answer(fit, at, fit.question.source)
    called = math.isfinite(found.high) and found.p_unreachable < SURE
    return Said(kinds, reachable, found.p_unreachable, called)


def synthetic(each: int, workers: int) -> list[Said]:
    truths = [(kind, *truth(kind, i)) for kind in KINDS[:3] for i in range(each)]
    fits = fitted((question for _, question, _ in truths), workers)
    return [
        judged(fit, at, frozenset([kind]), at < reachable)
        for (kind, question, reachable), fit in zip(truths, fits, strict=True)
        for at in range(len(question.targets))
    ]


def truth(kind: str, i: int) -> tuple[Question, int]:
    """The runs and targets of a synthetic curve; the first so many of its targets are reachable, the last is not."""
    rng = np.random.default_rng([KINDS.index(kind), i])
    floor, gain, b = rng.uniform(0.3, 0.45), rng.uniform(0.3, 0.6), rng.uniform(0.5, 1.0)
    n0 = FIRST * math.exp(rng.uniform(0.0, 2.0))
    forms: tuple[Callable[[float], float], ...] = (
        lambda n: (n / FIRST) ** -b,
        lambda n: 1 / (1 + (n / n0) ** b),
        lambda n: math.exp(-((n / n0) ** (0.6 * b))),
    )
    shape = forms[i % len(forms)]
    left = rng.uniform(0.02, 0.15)
    last = math.exp(brentq(lambda x: shape(math.exp(x)) - left * shape(FIRST), math.log(FIRST), 60))
    sizes = np.geomspace(FIRST, last, SIZES)
    noise = rng.uniform(0.08, 0.15) * gain if kind == "noisy" else rng.uniform(0.005, 0.02) * gain
    bump = rng.uniform(0.15, 0.3) * gain if kind == "dipping" else 0.0
    place, width = math.log(sizes[rng.integers(3, 6)]), 0.6 * math.log(sizes[1] / sizes[0])

    def loss(n: float) -> float:
        dip = bump * math.exp(-0.5 * ((math.log(n) - place) / width) ** 2)
        return floor + gain * shape(n) / shape(FIRST) + dip

    runs = tuple(
        Observation(n=float(n), value=max(0.0, loss(n) + noise * rng.standard_normal()), seed=str(seed))
        for n in sizes
        for seed in range(SEEDS)
    )
    better = loss(last) - noise / math.sqrt(SEEDS)
    reachable = [loss(reach * last) for reach in REACHES if loss(reach * last) < better]
    below = max(rng.uniform(0.1, 0.2) * gain, 3 * noise)
    targets = (*reachable, floor - below)
    return Question("synthetic", runs, False, (0.0, math.inf), targets), len(reachable)


def settled(curves: Sequence[Curve], most: int, workers: int) -> list[Said]:
    questions = [question for curve in fresh(curves) if (question := beyond(curve)) is not None][:most]
    return [judged(fit, 0, kinds_of(fit), False) for fit in fitted(questions, workers)]


def beyond(curve: Curve) -> Question | None:
    """A target past a curve that has settled, to a law that sees half of its last third; None for other curves."""
    log_n, loss = np.log(curve.n), curve.loss
    tail = log_n >= log_n[0] + (log_n[-1] - log_n[0]) * 2 / 3
    if tail.sum() < 4:
        return None
    line = linregress(log_n[tail], loss[tail])
    noise = float(np.std(loss[tail] - line.intercept - line.slope * log_n[tail], ddof=2))
    steepest = max(0.0, -line.slope + student.ppf(0.95, tail.sum() - 2) * line.stderr)
    goal = float(loss.min()) - MARGIN * noise
    end = line.intercept + line.slope * log_n[-1]
    best = -curve.bounds[1] if curve.higher_is_better else curve.bounds[0]
    seen = np.exp(0.5 * (log_n[tail][0] + log_n[-1]))
    if (
        noise == 0
        or goal <= best
        or steepest * math.log(FAR) >= end - goal
        or (curve.n <= seen).sum() < FEWEST
    ):
        return None
    target = -goal if curve.higher_is_better else goal
    return Question(curve.source, curve.up_to(seen), curve.higher_is_better, curve.bounds, (target,))


def kinds_of(fit: Fitted) -> frozenset[str]:
    facts = fit.facts
    noisy = facts["run_noise"] > NOISY * facts["spread"]
    named = zip(KINDS, (facts["saturated"], facts["rises"], noisy, facts["flat"]), strict=True)
    return frozenset(kind for kind, is_so in named if is_so)


def met(curves: Sequence[Curve], quick: bool, workers: int) -> list[Said]:
    """The intervals' cases."""
    return [judged(fit, 0, kinds_of(fit), True) for fit in fits_of(chosen(curves, quick), workers)]
