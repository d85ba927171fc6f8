"""Intervals: of real curves cut 2, 4 and 8 times below a point, does the 90 % interval of n* hold that point?

Curves: all of `llm_finetune`, `prompt_vs_head` and `few_shot`, and `LCDB` of LCDB's that the inverter was not developed
on. Whatever is calibrated on curves, is so without those of the source that is asked about.

*holds*: n* lies in the interval. *within a factor 2*: of the median. *finite*: the interval's upper end is. *width*:
median ratio of its ends. *interval score*: of log2 n* (Gneiting and Raftery 2007, eq. 43), ends no further than `CAP`
times n_max; less is better.

Beside it a Hill curve fitted by least squares, whose n* is made an interval by the quantiles of its residuals in log n*
on the other sources, each source weighing the same, apart for small, middle, large and infinite predicted n*/n_max.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scaling_calibration
import scaling_least_squares as least_squares
from common import Row
from scaling_curves import REACHES, Case, Curve, cases, sample_of
from scaling_fits import LEVEL, RUNS, Fitted, Question, answer, each, fitted, interval_of_mean, kept, row

from backcast.scaling import LAWS

SOURCES = ("llm_finetune", "prompt_vs_head", "few_shot", "lcdb")
#: LCDB's curves asked here, none of those that the inverter was developed on.
LCDB = 80
#: An end that is infinite, or further than this many times n_max, is scored as if it were there.
CAP = 2.0**10
#: Bounds between small, middle, large and infinite n*/n_max, as the Hill fit predicts it.
BINS = (3.0, 6.0, CAP * (1 - 1e-9))
#: Published for a Hill fit on `llm_finetune`: the share within a factor 2, by reach.
PUBLISHED = {2: 0.97, 4: 0.83, 8: 0.60}


@dataclass(frozen=True)
class Answer:
    """One way's answer to a case: the middle and the ends of n*, possibly infinite."""

    n: float
    low: float
    high: float

    def holds(self, case: Case) -> float:
        return float(self.low <= case.n_true <= self.high)

    def near(self, case: Case) -> float:
        return float(abs(math.log2(self.n / case.n_true)) <= 1)

    def finite(self, case: Case) -> float:
        return float(math.isfinite(self.high))

    def score(self, case: Case) -> float:
        low, high, true = (
            math.log2(min(max(n / case.n_max, 1 / CAP), CAP)) for n in (self.low, self.high, case.n_true)
        )
        return high - low + 2 / (1 - LEVEL) * (max(low - true, 0.0) + max(true - high, 0.0))


MEASURES: dict[str, Callable[[Answer, Case], float]] = {
    "90 % interval holds": Answer.holds,
    "within a factor 2": Answer.near,
    "finite": Answer.finite,
    "interval score": Answer.score,
}


def intervals(curves: Sequence[Curve], quick: bool, workers: int) -> list[Row]:
    asked = chosen(curves, quick)
    inverted = [
        answer(fit, 0, case.curve.source) for case, fit in zip(asked, fits_of(asked, workers), strict=True)
    ]
    ways = {
        "law": [Answer(one.n, one.low, one.high) for one in inverted],
        "Hill, conformal": conformal(asked, each("Hill fits", hill, [(case,) for case in asked], workers)),
    }
    rows: list[Row] = []
    for source in (*SOURCES, "all"):
        for reach in (*REACHES, "all"):
            at = [
                i
                for i, case in enumerate(asked)
                if source in (case.curve.source, "all") and reach in (case.reach, "all")
            ]
            if at:
                mine = {method: [answers[i] for i in at] for method, answers in ways.items()}
                rows += cell(source, reach, [asked[i] for i in at], mine)
    return rows


def fresh(curves: Sequence[Curve]) -> list[Curve]:
    """Those without LCDB's that the inverter was developed on; LCDB's in turn by task."""
    developed = {
        (curve.task, curve.name)
        for curve in sample_of(list(curves), "lcdb", scaling_calibration.LCDB, scaling_calibration.SEED)
    }
    rest = [curve for curve in curves if curve.source == "lcdb" and (curve.task, curve.name) not in developed]
    return [curve for curve in curves if curve.source != "lcdb"] + sample_of(rest, "lcdb", len(rest), seed=1)


def chosen(curves: Sequence[Curve], quick: bool) -> list[Case]:
    """The cases; in ``quick``, of two curves of each source."""
    most = dict.fromkeys(SOURCES, 2) if quick else {"lcdb": LCDB}
    by_source = {source: [curve for curve in fresh(curves) if curve.source == source] for source in SOURCES}
    return cases(curve for source, members in by_source.items() for curve in members[: most.get(source)])


def question(case: Case) -> Question:
    curve = case.curve
    return Question(curve.source, case.runs, curve.higher_is_better, curve.bounds, (case.target,))


def fits_of(asked: Sequence[Case], workers: int) -> list[Fitted]:
    return fitted(map(question, asked), workers)


def hill(case: Case) -> float:
    """n*/n_max of the Hill curve that fits the means best; `CAP` where it comes down no further."""
    return kept(RUNS / "hill" / f"{question(case).place.stem}.json", lambda: _hill(case))


def _hill(case: Case) -> float:
    curve = case.curve
    seen = curve.n <= case.n_max
    best = -curve.bounds[1] if curve.higher_is_better else curve.bounds[0]
    goal = -case.target if curve.higher_is_better else case.target
    y = np.maximum(curve.loss[seen] - best, 1e-9)
    # a loss without an upper end is fitted in its log, as the law's authors do
    fit = least_squares.fit(LAWS["hill"], curve.n[seen], y, logs=math.isinf(curve.bounds[1]))
    last = math.log(case.n_max)
    log_n = fit.log_n_at(goal - best, math.log(curve.n[0] / CAP), last + math.log(CAP))
    return math.exp(log_n - last)


def conformal(asked: Sequence[Case], predicted: Sequence[float]) -> list[Answer]:
    """Intervals from the residuals of log n* on the other sources."""
    source = np.array([case.curve.source for case in asked])
    point, size = np.log(predicted), np.digitize(predicted, BINS)
    residual = np.log([case.n_true / case.n_max for case in asked]) - point
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    found = []
    for i, case in enumerate(asked):
        others = source != source[i]
        if (like := others & (size == size[i])).any():
            others = like
        _, place, counts = np.unique(source[others], return_inverse=True, return_counts=True)
        low, high = np.quantile(residual[others], tails, weights=1 / counts[place], method="inverted_cdf")
        n = predicted[i] * case.n_max
        never = size[i] == len(BINS)
        found.append(
            Answer(math.inf if never else n, n * math.exp(low), math.inf if never else n * math.exp(high))
        )
    return found


def cell(source: str, reach: int | str, asked: Sequence[Case], ways: dict[str, list[Answer]]) -> list[Row]:
    """The measures of some cases, each way's."""
    curves = [f"{case.curve.source} {case.curve.task} {case.curve.name}" for case in asked]
    rows, score = [], {}
    for method, answers in ways.items():
        for measure, of in MEASURES.items():
            values = [of(one, case) for one, case in zip(answers, asked, strict=True)]
            known = None
            if (method, source, measure) == ("Hill, conformal", "llm_finetune", "within a factor 2"):
                known = PUBLISHED.get(reach) if isinstance(reach, int) else None
            value = float(np.mean(values))
            interval = interval_of_mean(values, curves)
            rows.append(row("intervals", method, source, reach, measure, value, known, interval, len(values)))
            score[method] = value  # the last measure's, which is the score
        # of widths, some infinite, the median is to be one of them
        width = float(np.quantile([one.high / one.low for one in answers], 0.5, method="inverted_cdf"))
        rows.append(row("intervals", method, source, reach, "width", width, cases=len(answers)))
    gain = 1 - score["law"] / score["Hill, conformal"]
    rows.append(
        row("intervals", "law", source, reach, "interval score below Hill's by", gain, cases=len(asked))
    )
    return rows
