"""Do curves of one task foretell each other? Laws fitted apart against laws pooled, and the savings between them.

A group of curves is a task under several methods, models or learners. Of each curve at most `SIZES` sizes are seen, up
to an eighth of its largest; the rest is held out. At 2, 4 and 8 times the largest size seen the score is what the curve
came to there: its log density under the law (in units of the seen means' spread), and n*, the data that the law asks
for that score, against the data that it took. An infinite n* counts as `FAR` times the largest size seen.

*savings*: each curve against the next of its task, at what the law of the next expects of its largest size seen;
against the ratio of what the two took, where both came to it past their smallest size.

Differences carry 90 % intervals over tasks drawn anew. Laws that have been scored are kept under --work, task by task:
an interrupted run goes on from there. About 115 fits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Row, write
from scaling_curves import FEWEST, REACHES, Curve, first_met, read_curves

from backcast.files import read_json, write_json
from backcast.progress import progress
from backcast.scaling import Law, fit_law, pool, savings

SOURCES = ("few_shot", "prompt_vs_head", "llm_finetune", "lcdb")
#: LCDB's groups: these learners on this many of the data sets that all of them were run on.
LEARNERS, DATA_SETS = ("LogisticRegression", "KNN", "Decision Tree", "GaussianNB"), 15
#: Sizes seen of a curve, up to this share of its largest.
SIZES, SHARE = 5, 1 / 8
FAR, LEVEL = 1e3, 0.9
WAYS = ("apart", "pooled")

Case = dict[str, Any]


def groups(curves: Iterable[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Tasks with two curves at least that can be fitted, of LCDB's a sample."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        learner = curve.name.partition("/")[2]
        if len(seen_sizes(curve)) >= FEWEST and (curve.source != "lcdb" or learner in LEARNERS):
            found.setdefault((curve.source, curve.task), []).append(curve)
    whole = [key for key, members in found.items() if key[0] == "lcdb" and len(members) == len(LEARNERS)]
    drawn = {whole[i] for i in np.random.default_rng(0).permutation(len(whole))[:DATA_SETS]}
    return {
        key: members
        for key, members in found.items()
        if (key in drawn if key[0] == "lcdb" else len(members) > 1)
    }


def seen_sizes(curve: Curve) -> np.ndarray:
    """At most `SIZES` of the curve's sizes up to `SHARE` of its largest, evenly by their rank."""
    sizes = curve.n[curve.n <= SHARE * curve.n[-1] * 1.01]
    return sizes[np.unique(np.linspace(0, len(sizes) - 1, min(SIZES, len(sizes))).round().astype(int))]


def fit(curve: Curve) -> Law:
    sizes = set(seen_sizes(curve))
    seen = [run for run in curve.runs if run.n in sizes]
    return fit_law(seen, higher_is_better=curve.higher_is_better, bounds=curve.bounds)


def scored(members: Sequence[Curve], place: Path) -> Mapping[str, list[Case]]:
    """way → the cases of a task, and its pairs of curves; kept at ``place``."""
    if not place.exists():
        apart = {curve.name: fit(curve) for curve in members}
        laws = {"apart": apart, "pooled": pool(apart)}
        write_json(
            place,
            {
                way: [case for c in members for case in cases(c, laws[way][c.name])]
                + [case for pair in _ring(members) if (case := saving(*pair, laws[way]))]
                for way in WAYS
            },
        )
    return read_json(place)


def cases(curve: Curve, law: Law) -> list[Case]:
    """What the law says of the held-out sizes that are nearest to each reach, and within a factor √2 of it."""
    last, found = law.budgets.n[-1], []
    for reach in REACHES:
        away = np.abs(np.log(curve.n / (reach * last)))
        at = int(away.argmin())
        target, n_true = float(curve.mean[at]), first_met(curve, float(curve.mean[at]))
        if away[at] <= math.log(2) / 2 and n_true > last:
            inversion = law.invert(target, LEVEL)
            found.append(
                {
                    "reach": reach,
                    "log_score": log_score(curve, law, at),
                    **judged(n_true, inversion.n, inversion.low, inversion.high, FAR * last),
                }
            )
    return found


def log_score(curve: Curve, law: Law, at: int) -> float:
    """Log density of the mean of the curve's runs at its size number ``at``, in units of the seen means' spread."""
    runs = [run for run in curve.runs if run.n == curve.n[at]]
    se = (runs[0].se or 0.0) if len(runs) == 1 else 0.0
    values = law.curves(curve.n[at])[:, 0]
    variance = law.run_variance(curve.n[at], len(runs))[:, 0] + se**2
    density = np.exp(-0.5 * (values - curve.mean[at]) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    return float(np.log(max(density.mean() * law.budgets.spread, 1e-300)))


def judged(true: float, median: float, low: float, high: float, most: float) -> Case:
    """An interval against the truth: whether it holds and is finite, the factor off and the interval score, in log2."""
    y, m, a, b = (math.log2(min(max(x, 1 / most), most)) for x in (true, median, low, high))
    return {
        "holds": low <= true <= high,
        "finite": math.isfinite(high),
        "off": abs(m - y),
        "interval_score": b - a + 2 / (1 - LEVEL) * (max(a - y, 0.0) + max(y - b, 0.0)),
    }


def saving(a: Curve, b: Curve, laws: Mapping[str, Law]) -> Case | None:
    """The savings of a over b, against what they came to; None where that is not known."""
    found = savings(laws[a.name], laws[b.name], level=LEVEL)
    true_a, true_b = first_met(a, found.value), first_met(b, found.value)
    if not (a.n[0] < true_a < math.inf and b.n[0] < true_b < math.inf) or found.p_undefined == 1:
        return None
    true = true_b / true_a
    right = found.told and (found.low > 1) == (true > 1)
    judgement = judged(true, found.ratio, found.low, found.high, FAR)
    return {"reach": "savings", "told": found.told, "right": right, **judgement}


def _ring(members: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    """Each with the next, and, of more than two, the last with the first."""
    pairs = list(pairwise(members))
    return [*pairs, (members[-1], members[0])] if len(members) > 2 else pairs


def measures(these: Sequence[Case]) -> dict[str, float]:
    found = {
        "90 % interval holds": float(np.mean([c["holds"] for c in these])),
        "median factor off": float(2 ** np.median([c["off"] for c in these])),
        "finite upper end": float(np.mean([c["finite"] for c in these])),
        "interval score, log2": float(np.mean([c["interval_score"] for c in these])),
    }
    if "log_score" in these[0]:
        found["log score"] = float(np.mean([c["log_score"] for c in these]))
    else:
        found["told"] = float(np.mean([c["told"] for c in these]))
        if told := [c["right"] for c in these if c["told"]]:
            found["right when told"] = float(np.mean(told))
    return found


def gain(tasks: Sequence[Mapping[str, Sequence[Case]]], key: str) -> tuple[float, float, float]:
    """Mean of pooled less apart, and its 90 % interval over tasks drawn with replacement."""
    apart, pooled = ([[c[key] for c in task[way]] for task in tasks] for way in WAYS)
    sums = np.array([[sum(p) - sum(a), len(a)] for a, p in zip(apart, pooled, strict=True)])
    drawn = np.random.default_rng(0).integers(len(tasks), size=(2000, len(tasks)))
    total = sums[drawn].sum(axis=1)
    low, high = np.quantile(total[:, 0] / total[:, 1], [0.05, 0.95]).tolist()
    return float(sums[:, 0].sum() / sums[:, 1].sum()), low, high


def rows_of(tasks: Mapping[tuple[str, str], Mapping[str, list[Case]]]) -> list[Row]:
    """The measures by source over all reaches, and over all sources by reach."""
    found: list[Row] = []
    cells = [(source, "2-8") for source in SOURCES] + [("all", r) for r in (*REACHES, "2-8")]
    cells += [(source, "savings") for source in (*SOURCES, "all")]
    for source, reach in cells:
        wanted = REACHES if reach == "2-8" else (reach,)
        chosen = [
            {way: [c for c in task[way] if c["reach"] in wanted] for way in WAYS}
            for (name, _), task in tasks.items()
            if source in (name, "all")
        ]
        chosen = [task for task in chosen if task["apart"]]
        for way in WAYS if chosen else ():
            these = [c for task in chosen for c in task[way]]
            found += [_row(way, source, reach, m, v, len(these)) for m, v in measures(these).items()]
        if chosen and reach != "savings":
            for measure, key in (("interval score, log2", "interval_score"), ("log score", "log_score")):
                value, low, high = gain(chosen, key)
                row = _row("pooled less apart", source, reach, measure, value, len(these))
                found.append({**row, "low": low, "high": high})
    return found


def _row(way: str, source: str, reach: int | str, measure: str, value: float, size: int) -> Row:
    return {
        "benchmark": "pooling",
        "method": way,
        "source": source,
        "reach": reach,
        "measure": measure,
        "value": value,
        "published": None,
        "low": None,
        "high": None,
        "cases": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one task of each source")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--data", type=Path, metavar="DIR", required=True)
    parser.add_argument("--work", type=Path, metavar="DIR", default=HERE.parent / "runs" / "scaling_pooling")
    asked = parser.parse_args()
    chosen = groups(read_curves(asked.data, SOURCES))
    if asked.quick:
        last = {source: (source, task) for source, task in chosen}
        chosen = {key: chosen[key] for key in last.values()}
    tasks = {}
    with progress("scaling_pooling", sum(map(len, chosen.values()))) as done:
        for (source, task), members in chosen.items():
            tasks[source, task] = scored(members, asked.work / f"{source}-{task}.json")
            done(len(members))
    write("scaling_pooling-quick" if asked.quick else "scaling_pooling", rows_of(tasks), asked.json)


if __name__ == "__main__":
    main()
